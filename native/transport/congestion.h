// How many bytes one path may have in flight.
//
// Slow start to the first loss, then additive increase and one multiplicative decrease per round
// trip (as NewReno, RFC 9002 §7), within the bounds of limits.h. The window grows only while it is
// what limits the sender.
#pragma once

#include <cstdint>

#include "base/time.h"

namespace securefabric::transport {

class CongestionWindow {
 public:
  CongestionWindow();

  void on_sent(uint64_t bytes, base::Instant now);
  // `sent_at` of the packet that was acknowledged.
  void on_acked(uint64_t bytes, base::Instant sent_at);
  // The packet left the network without an ack. `now` begins the next recovery period.
  void on_lost(uint64_t bytes, base::Instant sent_at, base::Instant now);
  // Two probe timeouts without any ack: start again from the smallest window.
  void on_persistent_loss();
  // A packet's bytes leave the count for another reason (its path was given up).
  void on_discarded(uint64_t bytes);

  // Bytes that may be sent now.
  uint64_t room() const { return in_flight_ < window_ ? window_ - in_flight_ : 0; }
  uint64_t window() const { return window_; }
  uint64_t in_flight() const { return in_flight_; }

 private:
  uint64_t window_;
  uint64_t in_flight_ = 0;           // bytes sent and neither acked, lost nor discarded
  uint64_t slow_start_threshold_;    // window above which growth is additive
  uint64_t acked_since_growth_ = 0;  // bytes acked since the last additive step
  // When the window was last nearly full. What was in flight then makes it grow when acked: judging
  // by what is in flight at the ack would forget that as soon as one ack settles a whole burst.
  base::Instant limited_at_ = base::Instant::from_nanos(-1);
  base::Instant recovery_started_;  // packets sent before this cause no further decrease
};

}  // namespace securefabric::transport
