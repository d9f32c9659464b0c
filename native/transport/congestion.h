// How many bytes one path may have in flight: control by delay, with marks and loss behind it.
//
// After Swift (Kumar et al., SIGCOMM 2020): the window grows by a packet per round trip while the
// queueing delay (what the network took above the least it ever takes) is below a target, which is
// higher for small windows, and shrinks in proportion to the excess, at most once per round trip.
// Congestion marks shrink it in proportion to their share (DCTCP, RFC 8257). A loss shrinks it when
// the queue is long as well, or when losses are frequent: a link that merely drops a packet now and
// then is not congested. It starts by doubling. It grows only while it is what limits the sender.
#pragma once

#include <cstdint>

#include "base/time.h"

namespace securefabric::transport {

class CongestionWindow {
 public:
  // `heeds_delay` is false in comparisons only: then any loss counts and nothing else does.
  explicit CongestionWindow(bool heeds_delay = true);

  // The path carries packets of so many bytes. A window that has not met congestion has room for
  // kPacedPackets of them.
  void on_packet_bytes(uint64_t bytes);
  void on_sent(uint64_t bytes, base::Instant now);
  // What one ack says of the path, before its packets are counted: the delay of the newest packet
  // it acknowledges, which left at `sent_at`.
  void on_delay(base::Duration delay, base::Instant sent_at, base::Instant now);
  // The route is not expected to be longer than this, whatever the first sample is: of a path that
  // is opened in the middle of traffic, that holds the queue.
  void assume_base(base::Duration delay, base::Instant now) { update_base(delay, now); }
  // Of `acked` packets that an ack settles, `marked` met congestion.
  void on_marked(uint64_t marked, uint64_t acked, base::Instant sent_at, base::Instant now);
  // `sent_at` of the packet that was acknowledged.
  void on_acked(uint64_t bytes, base::Instant sent_at);
  // The packet left the network without an ack.
  void on_lost(uint64_t bytes, base::Instant sent_at, base::Instant now);
  // A packet that was called lost had arrived. When that holds for all that caused the last
  // decrease, the decrease is taken back.
  void on_spurious_loss(base::Instant sent_at);
  // Probe timeouts without any ack: start again from the smallest window.
  void on_persistent_loss();
  // A packet's bytes leave the count for another reason (its path was given up).
  void on_discarded(uint64_t bytes);

  // Bytes that may be sent now.
  uint64_t room() const { return in_flight_ < window_ ? window_ - in_flight_ : 0; }
  uint64_t window() const { return window_; }
  uint64_t in_flight() const { return in_flight_; }
  // The newest packet met a queue of more than twice the target, or was marked.
  bool is_congested() const { return is_congested_; }
  // The queueing delay that is aimed at.
  base::Duration target() const;
  base::Duration queueing_delay() const { return queueing_; }
  // The least delay; 0 before the first sample.
  base::Duration base_delay() const { return base_; }

 private:
  void update_base(base::Duration delay, base::Instant now);
  // Lowers the window to `window`, unless it was lowered since `sent_at`.
  bool decrease(uint64_t window, base::Instant sent_at, base::Instant now);

  bool heeds_delay_;
  uint64_t window_;
  uint64_t in_flight_ = 0;           // bytes sent and neither acked, lost nor discarded
  uint64_t slow_start_threshold_;    // window above which growth is additive
  uint64_t acked_since_growth_ = 0;  // bytes acked since the last additive step
  // When the window was last nearly full. What was in flight then makes it grow when acked: judging
  // by what is in flight at the ack would forget that as soon as one ack settles a whole burst.
  base::Instant limited_at_ = base::Instant::from_nanos(-1);
  base::Instant decreased_at_;        // packets sent before this cause no further decrease
  uint64_t window_before_loss_ = 0;   // what a spurious loss restores; 0: nothing
  uint64_t losses_to_refute_ = 0;     // packets called lost since that decrease
  base::Instant first_lost_sent_at_;  // of them, when the oldest was sent
  uint32_t loss_share_ = 0;           // of packets lost, smoothed; in 1/65536
  uint32_t marked_share_ = 0;         // of packets marked, smoothed; in 1/65536
  base::Duration queueing_;           // of the newest sample
  base::Duration base_;               // least delay of this and the last period; 0: no sample
  base::Duration base_of_period_;     // least delay of this period; 0: none in it yet
  base::Instant period_began_at_;     // see kBaseDelayPeriod
  bool is_congested_ = false;         // see is_congested()
};

}  // namespace securefabric::transport
