#include "base/range_set.h"

#include <gtest/gtest.h>

#include <limits>
#include <set>

#include "base/random.h"

namespace securefabric::base {
namespace {

using Range = RangeSet::Range;
using Ranges = std::vector<Range>;

Ranges insert_and_list(RangeSet& set, uint64_t begin, uint64_t end) {
  Ranges fresh;
  set.insert(begin, end, [&fresh](uint64_t b, uint64_t e) { fresh.push_back({b, e}); });
  return fresh;
}

TEST(RangeSet, insert__empty_range_adds_nothing) {
  RangeSet set;
  EXPECT_TRUE(insert_and_list(set, 5, 5).empty());
  EXPECT_TRUE(insert_and_list(set, 6, 5).empty());
  EXPECT_TRUE(set.empty());
}

TEST(RangeSet, insert__merges_touching_ranges) {
  RangeSet set;
  set.insert(0, 2);
  set.insert(4, 6);
  EXPECT_EQ(set.ranges(), (Ranges{{0, 2}, {4, 6}}));
  EXPECT_EQ(insert_and_list(set, 2, 4), (Ranges{{2, 4}}));
  EXPECT_EQ(set.ranges(), (Ranges{{0, 6}}));
}

TEST(RangeSet, insert__reports_each_new_part_in_order) {
  RangeSet set;
  set.insert(2, 4);
  set.insert(6, 8);
  set.insert(20, 30);
  EXPECT_EQ(insert_and_list(set, 0, 10), (Ranges{{0, 2}, {4, 6}, {8, 10}}));
  EXPECT_EQ(set.ranges(), (Ranges{{0, 10}, {20, 30}}));
  EXPECT_TRUE(insert_and_list(set, 3, 9).empty());
}

TEST(RangeSet, contains__knows_its_edges) {
  RangeSet set;
  set.insert(3, 5);
  EXPECT_FALSE(set.contains(2));
  EXPECT_TRUE(set.contains(3));
  EXPECT_TRUE(set.contains(4));
  EXPECT_FALSE(set.contains(5));
}

TEST(RangeSet, contains__never_the_largest_integer) {
  constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();
  RangeSet set;
  EXPECT_FALSE(set.contains(kMax));
  set.insert(0, kMax);
  EXPECT_TRUE(set.contains(kMax - 1));
  EXPECT_FALSE(set.contains(kMax));
}

TEST(RangeSet, covers__needs_one_range_for_all) {
  RangeSet set;
  set.insert(0, 4);
  set.insert(5, 9);
  EXPECT_TRUE(set.covers(1, 4));
  EXPECT_TRUE(set.covers(5, 9));
  EXPECT_FALSE(set.covers(3, 6));
  EXPECT_FALSE(set.covers(4, 5));
  EXPECT_FALSE(set.covers(8, 10));
  EXPECT_TRUE(set.covers(4, 4));
}

TEST(RangeSet, clear__forgets_everything) {
  RangeSet set;
  set.insert(0, 4);
  set.clear();
  EXPECT_TRUE(set.empty());
  EXPECT_FALSE(set.contains(0));
}

// The oracle: every member in a std::set.
class Oracle {
 public:
  Ranges insert(uint64_t begin, uint64_t end) {
    Ranges fresh;
    for (uint64_t v = begin; v < end; ++v) {
      if (!members_.insert(v).second) continue;
      if (!fresh.empty() && fresh.back().end == v) {
        ++fresh.back().end;
      } else {
        fresh.push_back({v, v + 1});
      }
    }
    return fresh;
  }
  bool covers(uint64_t begin, uint64_t end) const {
    for (uint64_t v = begin; v < end; ++v) {
      if (!members_.contains(v)) return false;
    }
    return true;
  }
  Ranges ranges() const {
    Ranges all;
    for (const uint64_t v : members_) {
      if (!all.empty() && all.back().end == v) {
        ++all.back().end;
      } else {
        all.push_back({v, v + 1});
      }
    }
    return all;
  }

 private:
  std::set<uint64_t> members_;
};

TEST(RangeSet, every_call__agrees_with_a_set_of_integers) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    RangeSet set;
    Oracle oracle;
    for (int i = 0; i < 60; ++i) {
      const uint64_t begin = random.below(120);
      const uint64_t end = begin + random.below(1 + random.below(20));
      ASSERT_EQ(insert_and_list(set, begin, end), oracle.insert(begin, end));
      ASSERT_EQ(set.ranges(), oracle.ranges());
      const uint64_t from = random.below(130);
      const uint64_t to = from + random.below(10);
      ASSERT_EQ(set.covers(from, to), oracle.covers(from, to)) << from << ' ' << to;
      ASSERT_EQ(set.contains(from), oracle.covers(from, from + 1)) << from;
    }
  }
}

}  // namespace
}  // namespace securefabric::base
