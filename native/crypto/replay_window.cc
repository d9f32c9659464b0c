#include "crypto/replay_window.h"

#include <algorithm>

#include "base/check.h"

namespace securefabric::crypto {
namespace {

uint64_t reverse_bits(uint64_t x) {
  x = (x >> 1 & 0x5555555555555555u) | (x & 0x5555555555555555u) << 1;
  x = (x >> 2 & 0x3333333333333333u) | (x & 0x3333333333333333u) << 2;
  x = (x >> 4 & 0x0F0F0F0F0F0F0F0Fu) | (x & 0x0F0F0F0F0F0F0F0Fu) << 4;
  return __builtin_bswap64(x);
}

}  // namespace

Seen ReplayWindow::check(base::PacketNumber number) const {
  if (number >= end_) return Seen::kNew;
  if (end_ - number > kWindow) return Seen::kTooOld;
  return word_of(number) >> (number % 64) & 1 ? Seen::kDuplicate : Seen::kNew;
}

void ReplayWindow::commit(base::PacketNumber number) {
  SF_CHECK(check(number) == Seen::kNew && number + 1 != 0);
  if (number >= end_) {
    // What falls out of the window makes room for the numbers that were skipped.
    clear(std::max(end_, number + 1 - std::min(number + 1, kWindow)), number);
    end_ = number + 1;
  }
  uint64_t& word = ring_[number / 64 % kWords];
  const uint64_t bit = uint64_t{1} << (number % 64);
  word |= bit;
}

void ReplayWindow::clear(base::PacketNumber first, base::PacketNumber last) {
  while (first < last) {
    const uint64_t offset = first % 64;
    const uint64_t count = std::min(64 - offset, last - first);
    const uint64_t ones = count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
    ring_[first / 64 % kWords] &= ~(ones << offset);
    first += count;
  }
}

uint64_t ReplayWindow::contained_below(base::PacketNumber number) const {
  if (number == 0) return 0;
  const base::PacketNumber last = number - 1;
  // The 64 numbers that end with `last` lie in its word and, unless aligned, in the one before.
  const uint64_t shift = 63 - last % 64;
  uint64_t window = word_of(last) << shift;
  if (shift != 0 && last >= 64) window |= word_of(last - 64) >> (64 - shift);
  uint64_t bits = reverse_bits(window);  // bit i is now last - i
  // Cut off what the ring holds for other numbers: beyond the largest, below the window.
  if (last >= end_) {
    const uint64_t beyond = last - end_ + 1;
    bits = beyond >= 64 ? 0 : bits >> beyond << beyond;
  }
  const base::PacketNumber oldest = end_ > kWindow ? end_ - kWindow : 0;
  if (last < oldest) return 0;
  const uint64_t within = last - oldest + 1;
  return within >= 64 ? bits : bits & ((uint64_t{1} << within) - 1);
}

}  // namespace securefabric::crypto
