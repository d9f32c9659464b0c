#include "transport/ack_tracker.h"

#include <algorithm>

namespace securefabric::transport {

using base::Instant;

void AckTracker::on_packet(const Arrival& arrival, Instant now) {
  // A gap that appears, and one that is filled: the sender is about to call something lost.
  const bool is_out_of_order = arrival.number != (has_any_ ? largest_ + 1 : 0);
  if (!has_any_ || arrival.number > largest_) {
    largest_ = arrival.number;
    largest_at_ = now - arrival.waited;
  }
  has_any_ = true;
  if (arrival.is_marked_ce) ++ce_count_;
  if (!arrival.is_ack_eliciting) return;
  has_news_ = true;
  ++unreported_packets_;
  unreported_bytes_ += arrival.bytes;
  const bool at_once = arrival.wants_ack_now || is_out_of_order || arrival.is_marked_ce ||
                       unreported_bytes_ >= kAckEveryBytes ||
                       unreported_packets_ >= kAckEveryPackets;
  deadline_ = base::earlier(deadline_, at_once ? now : now + kAckDelayMax);
}

// What arrived below the largest, as far as an ack reaches, 64 numbers at a time. Numbers below 0
// count as arrived. Bytes beyond the last one that misses something are left out.
void AckTracker::fill_bitmap(const crypto::ReplayWindow& window,
                             std::vector<uint8_t>& bitmap) const {
  constexpr uint64_t kBytes = wire::AckFrame::kBitmapBytesMax;
  bitmap.resize(kBytes);
  size_t used = 0;
  for (uint64_t done = 0; done < kBytes && done * 8 < largest_; done += 8) {
    const base::PacketNumber below = largest_ - done * 8;
    uint64_t word = window.contained_below(below);
    if (below < 64) word |= ~uint64_t{0} << below;
    if (word == ~uint64_t{0}) continue;
    for (uint64_t i = 0; i < 8; ++i) bitmap[done + i] = static_cast<uint8_t>(word >> (8 * i));
    std::fill(bitmap.begin() + static_cast<ptrdiff_t>(used),
              bitmap.begin() + static_cast<ptrdiff_t>(done), 0xFF);
    used = done + 8;
  }
  while (used > 0 && bitmap[used - 1] == 0xFF) --used;
  bitmap.resize(used);
}

wire::AckFrame AckTracker::make_ack(base::PathId path, const crypto::ReplayWindow& window,
                                    Instant now, std::vector<uint8_t>& bitmap) {
  wire::AckFrame ack;
  ack.path = path;
  ack.largest = largest_;
  ack.delay_us = static_cast<uint32_t>(std::min<int64_t>((now - largest_at_).micros(), UINT32_MAX));
  ack.ce_count = ce_count_;
  fill_bitmap(window, bitmap);
  ack.bitmap = bitmap;
  unreported_bytes_ = 0;
  unreported_packets_ = 0;
  has_news_ = false;
  deadline_ = Instant::never();
  return ack;
}

}  // namespace securefabric::transport
