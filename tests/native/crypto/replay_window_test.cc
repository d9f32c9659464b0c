#include "crypto/replay_window.h"

#include <gtest/gtest.h>

#include <set>

#include "base/random.h"

namespace securefabric::crypto {
namespace {

constexpr uint64_t kWindow = ReplayWindow::kWindow;

// The same answers from everything ever committed.
class Oracle {
 public:
  Seen check(uint64_t number) const {
    if (!numbers_.empty() && *numbers_.rbegin() >= number &&
        *numbers_.rbegin() - number >= kWindow) {
      return Seen::kTooOld;
    }
    return numbers_.contains(number) ? Seen::kDuplicate : Seen::kNew;
  }
  void commit(uint64_t number) { numbers_.insert(number); }
  uint64_t contained_below(uint64_t number) const {
    uint64_t bits = 0;
    for (uint64_t i = 0; i < 64 && i < number; ++i) {
      bits |= uint64_t{check(number - 1 - i) == Seen::kDuplicate} << i;
    }
    return bits;
  }

 private:
  std::set<uint64_t> numbers_;
};

TEST(ReplayWindow, empty__has_seen_nothing) {
  const ReplayWindow window;
  EXPECT_TRUE(window.empty());
  EXPECT_EQ(window.largest(), 0u);
  EXPECT_FALSE(window.contains(0));
  EXPECT_EQ(window.check(0), Seen::kNew);
  EXPECT_EQ(window.check(~uint64_t{0} - 1), Seen::kNew);
  EXPECT_EQ(window.contained_below(100), 0u);
}

TEST(ReplayWindow, check__changes_nothing) {
  ReplayWindow window;
  window.commit(5);
  EXPECT_EQ(window.check(1'000'000), Seen::kNew);
  EXPECT_EQ(window.largest(), 5u);
  EXPECT_EQ(window.check(4), Seen::kNew);
  EXPECT_EQ(window.check(4), Seen::kNew);
  EXPECT_EQ(window.check(5), Seen::kDuplicate);
}

TEST(ReplayWindow, edge__is_exactly_8192_numbers) {
  ReplayWindow window;
  window.commit(0);
  window.commit(kWindow - 1);
  EXPECT_EQ(window.check(0), Seen::kDuplicate);
  window.commit(kWindow);
  EXPECT_EQ(window.check(0), Seen::kTooOld);
  EXPECT_EQ(window.check(1), Seen::kNew);
}

TEST(ReplayWindow, commit__takes_the_oldest_free_number) {
  ReplayWindow window;
  window.commit(20'000);
  const uint64_t oldest = 20'000 - kWindow + 1;
  EXPECT_EQ(window.check(oldest - 1), Seen::kTooOld);
  window.commit(oldest);
  EXPECT_EQ(window.check(oldest), Seen::kDuplicate);
  EXPECT_EQ(window.largest(), 20'000u);
}

TEST(ReplayWindow, jump__forgets_everything_below_the_window) {
  ReplayWindow window;
  for (uint64_t n = 0; n < 3 * kWindow; ++n) window.commit(n);
  window.commit(uint64_t{1} << 61);
  for (uint64_t i = 1; i < kWindow; ++i) {
    ASSERT_EQ(window.check((uint64_t{1} << 61) - i), Seen::kNew);
  }
  EXPECT_EQ(window.check(3 * kWindow - 1), Seen::kTooOld);
}

TEST(ReplayWindow, commit__of_a_seen_number_is_a_bug) {
  ReplayWindow window;
  window.commit(7);
  EXPECT_DEATH(window.commit(7), "broken invariant");
}

// Random walks of every kind of step: in order, reordered, duplicated, old, and far ahead.
TEST(ReplayWindow, property__agrees_with_a_set) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    base::Random random(seed);
    ReplayWindow window;
    Oracle oracle;
    uint64_t front = random.below(1'000);
    for (int step = 0; step < 4'000; ++step) {
      uint64_t number = front;
      const uint64_t kind = random.below(100);
      if (kind < 60)
        number = front + random.below(3);
      else if (kind < 85)
        number = front - std::min(front, random.below(200));
      else if (kind < 95)
        number = front - std::min(front, random.below(2 * kWindow));
      else
        number = front + random.below(random.chance(0.2) ? 3 * kWindow : 300);
      ASSERT_EQ(window.check(number), oracle.check(number)) << number;
      if (oracle.check(number) == Seen::kNew) {
        window.commit(number);
        oracle.commit(number);
        front = std::max(front, number + 1);
      }
      ASSERT_TRUE(window.contains(number) || oracle.check(number) == Seen::kTooOld);
      const uint64_t at = front + 70 - std::min(front + 70, random.below(kWindow + 200));
      ASSERT_EQ(window.contained_below(at), oracle.contained_below(at)) << at;
    }
  }
}

}  // namespace
}  // namespace securefabric::crypto
