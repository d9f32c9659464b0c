// Divides what this rank's receive buffers take among the peers that may send to it.
//
// Each peer is told how many bytes it may have in flight to us, over all paths. What waits in a
// socket's buffer is in flight: while the sum of these windows stays below the budget, any number
// of senders cannot overrun a buffer. Peers that are expected to send (they were granted a large
// message lately, or bring one) share what is left when all others have been given the floor.
#pragma once

#include <cstdint>
#include <map>

#include "base/ids.h"
#include "base/time.h"

namespace securefabric::transport {

class CreditPool {
 public:
  // `budget_bytes`: what the buffers take; at least kPeerWindowMin.
  explicit CreditPool(uint64_t budget_bytes) : budget_(budget_bytes) {}

  void add(base::Rank peer);
  void remove(base::Rank peer);
  // The peer is expected to send, or sends, a large message. True when the shares have changed.
  bool on_activity(base::Rank peer, base::Instant now);

  // Bytes that the peer may have in flight; it is one that was added.
  uint64_t window_of(base::Rank peer) const;
  size_t active_peers() const { return active_; }

 private:
  struct Peer {
    bool is_active = false;      // has a share beyond the floor
    base::Instant active_until;  // valid when is_active
  };
  uint64_t floor() const;
  bool expire(base::Instant now);

  uint64_t budget_;                   // see the constructor
  std::map<base::Rank, Peer> peers_;  // those with a link
  size_t active_ = 0;                 // of them, with is_active
  base::Instant next_expiry_at_;      // when to look for those that have fallen silent
};

}  // namespace securefabric::transport
