#include "transport/sent_packets.h"

#include <algorithm>

#include "base/check.h"
#include "transport/limits.h"

namespace securefabric::transport {

using base::Duration;
using base::Instant;
using base::PacketNumber;

void SentPackets::Settled::clear() {
  acked.clear();
  lost.clear();
  revived.clear();
  rtt.reset();
}

void SentPackets::on_sent(PacketNumber number, SentPacket packet) {
  SF_CHECK(number == next_number());
  if (packet.is_ack_eliciting) {
    if (eliciting_in_flight_++ == 0) silent_since_ = packet.sent_at;
  } else {
    // Nobody waits for its ack: it is recorded only to keep the numbering dense.
    packet.state = SentPacket::State::kAcked;
  }
  packets_.push_back(std::move(packet));
  forget_settled();
}

bool SentPackets::on_ack(const wire::AckFrame& ack, Instant now, Settled& out) {
  if (ack.largest >= next_number()) return false;
  // Oldest first, so that whoever reads `out.acked` sees the order of sending.
  const uint64_t unsettled = ack.largest - std::min(ack.largest, first_number_);
  constexpr uint64_t kReach = wire::AckFrame::kBitmapBytesMax * 8;
  for (uint64_t i = std::min(kReach, unsettled); i-- > 0;) {
    const bool arrived = i / 8 >= ack.bitmap.size() || (ack.bitmap[i / 8] >> (i % 8) & 1) != 0;
    if (arrived) acknowledge(ack.largest - 1 - i, out);
  }
  acknowledge(ack.largest, out);
  if (out.has_progress()) silent_since_ = now;
  if (has_acked_ && ack.largest <= largest_acked_) return true;  // an ack that was overtaken
  has_acked_ = true;
  largest_acked_ = ack.largest;
  // RFC 9002 §5.1: the largest may be a packet that asked for no ack; its arrival made no sample
  // possible unless something that did ask was acknowledged with it. That one is still recorded,
  // and so is everything after it.
  if (!out.acked.empty()) out.rtt = now - packets_[ack.largest - first_number_].sent_at;
  return true;
}

void SentPackets::acknowledge(PacketNumber number, Settled& out) {
  if (number < first_number_) return;
  SentPacket& packet = packets_[number - first_number_];
  if (packet.state == SentPacket::State::kAcked) return;
  const bool was_lost = packet.state == SentPacket::State::kLost;
  packet.state = SentPacket::State::kAcked;
  if (!was_lost) --eliciting_in_flight_;
  newest_acked_sent_at_ = std::max(newest_acked_sent_at_, packet.sent_at);
  SentPacket settled = std::move(packet);
  packet.data.reset();
  packet.others.clear();
  (was_lost ? out.revived : out.acked).push_back(std::move(settled));
}

void SentPackets::detect_lost(Instant now, Duration loss_delay, Settled& out) {
  if (!has_acked_) return;
  for (PacketNumber n = std::max(first_in_flight_, first_number_); n < largest_acked_; ++n) {
    SentPacket& packet = packets_[n - first_number_];
    if (packet.state != SentPacket::State::kInFlight) continue;
    if (packet.sent_at + loss_delay > now) break;
    settle_lost(packet, out);
  }
  forget_settled();
}

void SentPackets::give_up_all(Settled& out) {
  for (PacketNumber n = std::max(first_in_flight_, first_number_); n < next_number(); ++n) {
    SentPacket& packet = packets_[n - first_number_];
    if (packet.state == SentPacket::State::kInFlight) settle_lost(packet, out);
  }
  forget_settled();
}

void SentPackets::settle_lost(SentPacket& packet, Settled& out) {
  packet.state = SentPacket::State::kLost;
  --eliciting_in_flight_;
  out.lost.push_back(packet);  // a copy stays: its ack may still come
}

const SentPacket* SentPackets::oldest_in_flight() const {
  for (PacketNumber n = std::max(first_in_flight_, first_number_); n < next_number(); ++n) {
    const SentPacket& packet = packets_[n - first_number_];
    if (packet.state == SentPacket::State::kInFlight) return &packet;
  }
  return nullptr;
}

Instant SentPackets::loss_time(Duration loss_delay) const {
  if (!has_acked_) return Instant::never();
  for (PacketNumber n = std::max(first_in_flight_, first_number_); n < largest_acked_; ++n) {
    const SentPacket& packet = packets_[n - first_number_];
    if (packet.state == SentPacket::State::kInFlight) return packet.sent_at + loss_delay;
  }
  return Instant::never();
}

bool SentPackets::is_full() const {
  return next_number() - std::max(first_in_flight_, first_number_) >= kInFlightPacketsMax;
}

void SentPackets::forget_settled() {
  first_in_flight_ = std::max(first_in_flight_, first_number_);
  while (first_in_flight_ < next_number() &&
         packets_[first_in_flight_ - first_number_].state != SentPacket::State::kInFlight) {
    ++first_in_flight_;
  }
  while (first_number_ < first_in_flight_) {
    const SentPacket& front = packets_.front();
    const bool may_still_be_acked = front.state == SentPacket::State::kLost &&
                                    next_number() - first_number_ <= kInFlightPacketsMax;
    if (may_still_be_acked) break;
    packets_.pop_front();
    ++first_number_;
  }
}

}  // namespace securefabric::transport
