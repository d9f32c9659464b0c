#include "base/random.h"

#include <gtest/gtest.h>

#include <set>

namespace securefabric::base {
namespace {

// The sequence is part of every recorded simulation: it must never change.
TEST(Random, next__is_xoshiro256_seeded_by_splitmix64) {
  Random random(0);
  EXPECT_EQ(random.next(), 0x99EC5F36CB75F2B4u);
  EXPECT_EQ(random.next(), 0xBF6E1F784956452Au);
  EXPECT_EQ(random.next(), 0x1A5F849D4933E6E0u);
}

TEST(Random, next__depends_on_the_seed_only) {
  Random a(5);
  Random b(5);
  Random c(6);
  int same = 0;
  for (int i = 0; i < 100; ++i) {
    const uint64_t value = a.next();
    EXPECT_EQ(value, b.next());
    same += value == c.next();
  }
  EXPECT_EQ(same, 0);
}

TEST(Random, below__reaches_every_value_and_no_other) {
  Random random(1);
  std::set<uint64_t> seen;
  for (int i = 0; i < 1000; ++i) seen.insert(random.below(7));
  EXPECT_EQ(seen.size(), 7u);
  EXPECT_EQ(*seen.rbegin(), 6u);
  EXPECT_EQ(random.below(1), 0u);
}

TEST(RandomDeathTest, below__zero_is_our_bug) {
  Random random(1);
  EXPECT_DEATH((void)random.below(0), "broken invariant");
}

TEST(Random, chance__ends_are_certain_and_the_middle_is_even) {
  Random random(2);
  int hits = 0;
  for (int i = 0; i < 10'000; ++i) {
    EXPECT_FALSE(random.chance(0.0));
    EXPECT_TRUE(random.chance(1.0));
    hits += random.chance(0.25);
  }
  EXPECT_NEAR(hits, 2500, 150);
}

TEST(Random, fill__covers_the_span_and_nothing_behind_it) {
  std::vector<uint8_t> bytes(64, 0);
  Random(3).fill(MutableBytes(bytes).first(60));
  const std::set<uint8_t> seen(bytes.begin(), bytes.begin() + 60);
  EXPECT_GT(seen.size(), 30u);
  EXPECT_EQ(to_hex(Bytes(bytes).last(4)), "00000000");
}

}  // namespace
}  // namespace securefabric::base
