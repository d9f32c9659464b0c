// Which packet numbers of one path were accepted: a ring of bits below the largest one.
//
// In the manner of RFC 6479, but exact: a number is in the window while it is less than 8192 below
// the largest. `check` changes nothing, so that it may run before the tag verified; `commit` runs
// after. The bitmap doubles as the source of acks.
#pragma once

#include <array>
#include <cstdint>

#include "base/ids.h"

namespace securefabric::crypto {

enum class Seen { kNew, kDuplicate, kTooOld };

class ReplayWindow {
 public:
  // PROTOCOL.md §4: at least twice the packets that a path has in flight. 1 KiB per path.
  static constexpr uint64_t kWindow = 8192;

  Seen check(base::PacketNumber number) const;
  // Requires check(number) == kNew, and number below 2^64 - 1.
  void commit(base::PacketNumber number);

  // True before the first commit.
  bool empty() const { return end_ == 0; }
  // The largest committed number; 0 while empty.
  base::PacketNumber largest() const { return end_ == 0 ? 0 : end_ - 1; }
  // True for a committed number that is still in the window.
  bool contains(base::PacketNumber number) const { return check(number) == Seen::kDuplicate; }
  // Bit i says whether number - 1 - i is contained: 64 packets of an ack's bitmap at once.
  uint64_t contained_below(base::PacketNumber number) const;

 private:
  static constexpr uint64_t kWords = kWindow / 64;

  uint64_t word_of(base::PacketNumber number) const { return ring_[number / 64 % kWords]; }
  // Clears the ring's bits of [first, last); at most kWindow of them.
  void clear(base::PacketNumber first, base::PacketNumber last);

  // Bit n % kWindow stands for number n in [end_ - kWindow, end_); the bits of numbers that never
  // existed (below 0) are clear.
  std::array<uint64_t, kWords> ring_{};
  base::PacketNumber end_ = 0;  // one past the largest committed number; 0: none yet
};

}  // namespace securefabric::crypto
