// What was sent on one path and not yet settled: acknowledgement, loss detection, probe timeout.
//
// RACK (RFC 8985), applied inside one path only: a packet is lost when a later one of its path was
// acknowledged and enough time has passed since it was sent. No count of later packets decides, and
// nothing is inferred from what another path delivered, so spraying causes no spurious resends.
// A packet is recorded when it is sealed; it stays until acked, or until it was lost so long ago
// that a late ack no longer matters.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <variant>
#include <vector>

#include "base/ids.h"
#include "base/time.h"
#include "transport/rtt.h"
#include "wire/frames.h"

namespace securefabric::transport {

// A fragment that went out: enough to send it again from the message.
struct SentData {
  uint64_t message_id = 0;  // of the sender's queue
  uint64_t offset = 0;      // bytes
  uint32_t length = 0;      // bytes; 0 for an empty message or a request to send
};

// The newest credit is sent when one is lost; its value is looked up then.
struct SentCredit {};

// Our half of the exchange for this epoch; its value is looked up when it is sent again.
struct SentEpoch {
  uint32_t epoch = 0;
};

// Frames that must arrive, as remembered in case their packet is lost.
using ReliableFrame = std::variant<SentData, SentCredit, SentEpoch, wire::GrantFrame,
                                   std::shared_ptr<const wire::AbortFrame>>;

struct SentPacket {
  enum class State : uint8_t { kInFlight, kAcked, kLost };

  base::Instant sent_at;              // when it was sealed
  uint32_t bytes = 0;                 // on the wire; 0 when it does not count as in flight
  State state = State::kInFlight;     // see above
  bool is_ack_eliciting = false;      // the peer will acknowledge it
  bool asks_for_ack = false;          // at once
  uint16_t mtu_probe_bytes = 0;       // size of a probe of the path's MTU; 0: it is none
  std::optional<SentData> data;       // the first fragment: nearly always the only frame
  std::vector<ReliableFrame> others;  // whatever else must arrive; nearly always empty
};

class SentPackets {
 public:
  // What an ack or a timeout settled; added to, so the caller clears it.
  struct Settled {
    std::vector<SentPacket> acked;    // newly acknowledged, in order
    std::vector<SentPacket> lost;     // newly declared lost, in order
    std::vector<SentPacket> revived;  // acknowledged after they had been declared lost
    // Sample, when the ack is the newest of its path and acknowledged something new.
    std::optional<base::Duration> rtt;

    // True when the ack proves that the path delivers.
    bool has_progress() const { return !acked.empty() || !revived.empty(); }
    // Keeps the memory, so that settling allocates nothing in steady state.
    void clear();
  };

  // `number` is one more than the last one recorded.
  void on_sent(base::PacketNumber number, SentPacket packet);

  // Returns false when the ack names packets that were never sent (a protocol violation).
  bool on_ack(const wire::AckFrame& ack, base::Instant now, Settled& out);
  // Moves what must be considered lost by now to `out.lost`.
  void detect_lost(base::Instant now, base::Duration loss_delay, Settled& out);
  // Gives up everything in flight: the path is suspect.
  void give_up_all(Settled& out);
  // For probes; null when there is none.
  const SentPacket* oldest_in_flight() const;

  // When detect_lost would find something new; never if nothing waits for that.
  base::Instant loss_time(base::Duration loss_delay) const;
  // Since when the path owes an answer: the last ack that brought something new, or the first
  // packet that was sent after all others had been settled. Probe timers count from there: counting
  // from the last packet, a steady trickle onto a dead path would put them off for ever.
  base::Instant silent_since() const { return silent_since_; }
  bool has_eliciting_in_flight() const { return eliciting_in_flight_ > 0; }
  // When the newest packet that was acknowledged left: the path worked then.
  base::Instant newest_acked_sent_at() const { return newest_acked_sent_at_; }
  bool is_full() const;

 private:
  void acknowledge(base::PacketNumber number, Settled& out);
  void settle_lost(SentPacket& packet, Settled& out);
  void forget_settled();
  base::PacketNumber next_number() const { return first_number_ + packets_.size(); }

  std::deque<SentPacket> packets_;          // packets_[i] has number first_number_ + i
  base::PacketNumber first_number_ = 0;     // of packets_.front()
  base::PacketNumber first_in_flight_ = 0;  // nothing below is in flight
  base::PacketNumber largest_acked_ = 0;    // valid when has_acked_
  bool has_acked_ = false;                  // an ack has arrived
  size_t eliciting_in_flight_ = 0;          // ack-eliciting packets in flight
  base::Instant silent_since_;              // valid when eliciting_in_flight_ > 0
  base::Instant newest_acked_sent_at_;      // see newest_acked_sent_at(); 0 before the first
};

}  // namespace securefabric::transport
