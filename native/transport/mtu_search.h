// The largest datagram that one path carries, found by probing (RFC 8899).
//
// A path is validated with datagrams of kDatagramBytesMin. From there the search goes up: first the
// size that both ends take (or, after an interruption, the one that worked before), then
// Ethernet's, then by halves until the gap is below kMtuStep. A probe carries nothing that matters;
// it fails when kMtuProbesMax copies of it were lost. A failed search is repeated every
// kMtuRaiseInterval.
//
// Routes change. When kMtuBlackHoleLosses packets above the minimum are lost with none of them
// acknowledged between, the path falls back to the minimum and is searched again.
#pragma once

#include <cstddef>

#include "base/time.h"

namespace securefabric::transport {

class MtuSearch {
 public:
  // `ceiling`: the largest datagram that both ends take; at least kDatagramBytesMin.
  explicit MtuSearch(size_t ceiling);

  // The size of full datagrams, now.
  size_t mtu() const { return mtu_; }
  // The size of the probe that is to be sent now; 0: none.
  size_t probe_due(base::Instant now) const;
  // When the next one is due, if that is not up to an answer.
  base::Instant deadline() const;

  void on_probe_sent();
  void on_probe_acked(size_t bytes, base::Instant now);
  void on_probe_lost(size_t bytes, base::Instant now);
  // What befell other packets, of `bytes` each.
  void on_acked(size_t bytes);
  void on_lost(size_t bytes);
  // Back to the minimum: the path was interrupted.
  void restart();

 private:
  // Chooses the next size between what works and what fails; the search may be over.
  void choose(base::Instant now);

  size_t ceiling_;           // see the constructor
  size_t mtu_;               // the largest that worked
  size_t too_large_;         // the smallest that failed, or ceiling_ + 1
  size_t probe_ = 0;         // size that is being tried; 0: the search is over
  bool is_waiting_ = false;  // a probe is on its way
  int losses_ = 0;           // of probes of this size
  int large_losses_ = 0;     // of packets above the minimum, since one was acknowledged
  base::Instant raise_at_ = base::Instant::never();  // when a failed search is repeated
};

}  // namespace securefabric::transport
