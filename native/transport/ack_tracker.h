// What arrived on one path and when to tell the peer.
//
// An ack is sent at once when the sender's operation waits for it, when a gap appears or is filled,
// or after a burst's worth of bytes; otherwise it rides on the next packet, or goes alone after
// kAckDelayMax. Which packets arrived is read from the path's replay window, which already
// remembers them; every ack reports as far back as it can, for acks are lost and overtake each
// other.
#pragma once

#include <cstdint>
#include <vector>

#include "base/ids.h"
#include "base/time.h"
#include "crypto/replay_window.h"
#include "transport/limits.h"
#include "wire/frames.h"

namespace securefabric::transport {

class AckTracker {
 public:
  struct Arrival {
    base::PacketNumber number = 0;  // just committed to the replay window
    size_t bytes = 0;               // on the wire
    bool is_ack_eliciting = false;  // holds something besides acks and padding
    bool wants_ack_now = false;     // the sender asked for it
    bool is_marked_ce = false;      // congestion experienced
    base::Duration waited = {};     // how long it lay in this host before it was opened
  };
  void on_packet(const Arrival& arrival, base::Instant now);

  // Makes the next packet carry an ack even if there is nothing new.
  void repeat() { has_news_ = has_any_; }

  // Something arrived that no ack has reported yet: worth adding to a packet that goes out anyway.
  bool has_news() const { return has_news_; }
  bool is_due(base::Instant now) const { return deadline_ <= now; }
  base::Instant deadline() const { return deadline_; }

  // The ack to send now. Its bitmap points into `bitmap`, which this call fills.
  wire::AckFrame make_ack(base::PathId path, const crypto::ReplayWindow& window, base::Instant now,
                          std::vector<uint8_t>& bitmap);

 private:
  void fill_bitmap(const crypto::ReplayWindow& window, std::vector<uint8_t>& bitmap) const;

  base::PacketNumber largest_ = 0;                   // largest packet number that arrived
  base::Instant largest_at_;                         // when it did
  uint64_t unreported_bytes_ = 0;                    // ack-eliciting bytes since the last ack
  uint64_t unreported_packets_ = 0;                  // ack-eliciting packets since the last ack
  uint32_t ce_count_ = 0;                            // marked packets, modulo 2^32
  base::Instant deadline_ = base::Instant::never();  // when an ack must go out
  bool has_news_ = false;                            // see has_news()
  bool has_any_ = false;                             // a packet has arrived at all
};

}  // namespace securefabric::transport
