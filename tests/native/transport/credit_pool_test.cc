#include "transport/credit_pool.h"

#include <gtest/gtest.h>

#include <set>

#include "base/random.h"
#include "transport/limits.h"

namespace securefabric::transport {
namespace {

using base::Instant;
using base::Rank;

constexpr uint64_t kBudget = 8 << 20;

Instant at(int64_t millis) {
  return Instant::from_nanos(millis * 1'000'000);
}

TEST(CreditPool, window_of__one_sender_has_nearly_all) {
  CreditPool pool(kBudget);
  for (uint32_t rank = 0; rank < 4; ++rank) pool.add(Rank{rank});
  EXPECT_EQ(pool.window_of(Rank{0}), kPeerWindowIdle);
  EXPECT_TRUE(pool.on_activity(Rank{0}, at(1)));
  EXPECT_FALSE(pool.on_activity(Rank{0}, at(2)));
  EXPECT_EQ(pool.window_of(Rank{0}), kBudget - 3 * kPeerWindowIdle);
  EXPECT_EQ(pool.window_of(Rank{1}), kPeerWindowIdle);
}

TEST(CreditPool, window_of__shares_end_with_silence) {
  CreditPool pool(kBudget);
  pool.add(Rank{0});
  pool.add(Rank{1});
  pool.on_activity(Rank{0}, at(0));
  pool.on_activity(Rank{1}, at(0));
  EXPECT_EQ(pool.window_of(Rank{0}), kBudget / 2);
  const int64_t later = 2 * kPeerActivePeriod.millis();
  EXPECT_TRUE(pool.on_activity(Rank{1}, at(later)));
  EXPECT_EQ(pool.active_peers(), 1u);
  EXPECT_EQ(pool.window_of(Rank{0}), kPeerWindowIdle);
  EXPECT_EQ(pool.window_of(Rank{1}), kBudget - kPeerWindowIdle);
}

TEST(CreditPool, remove__gives_the_share_to_the_others) {
  CreditPool pool(kBudget);
  for (uint32_t rank = 0; rank < 3; ++rank) pool.add(Rank{rank});
  for (uint32_t rank = 0; rank < 3; ++rank) pool.on_activity(Rank{rank}, at(0));
  pool.remove(Rank{2});
  pool.remove(Rank{2});
  EXPECT_EQ(pool.window_of(Rank{0}), kBudget / 2);
  EXPECT_FALSE(pool.on_activity(Rank{2}, at(1))) << "a stranger";
}

TEST(CreditPool, every_call__the_sum_stays_within_the_budget) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    base::Random random(seed);
    CreditPool pool(kBudget);
    std::set<uint32_t> known;
    for (int64_t now = 0; now < 500; ++now) {
      const auto rank = static_cast<uint32_t>(random.below(300));
      if (random.chance(0.3)) {
        pool.add(Rank{rank});
        known.insert(rank);
      } else if (random.chance(0.05)) {
        pool.remove(Rank{rank});
        known.erase(rank);
      }
      pool.on_activity(Rank{rank}, at(now));
      uint64_t sum = 0;
      for (const uint32_t peer : known) {
        ASSERT_GE(pool.window_of(Rank{peer}), kPeerWindowMin);
        sum += pool.window_of(Rank{peer});
      }
      ASSERT_LE(sum, std::max<uint64_t>(kBudget, known.size() * kPeerWindowMin));
      ASSERT_LE(pool.active_peers(), known.size());
    }
  }
}

}  // namespace
}  // namespace securefabric::transport
