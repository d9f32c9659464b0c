#include "collective/plan_parts.h"

#include <gtest/gtest.h>

namespace securefabric::collective {
namespace {

TEST(PlanParts, part_of__is_cut_to_fit) {
  const Region whole{3, 100, 10};
  EXPECT_EQ((Region{3, 104, 6}), part_of(whole, 4, 99));
  EXPECT_EQ((Region{3, 102, 5}), part_of(whole, 2, 5));
  EXPECT_EQ((Region{3, 110, 0}), part_of(whole, 12, 5));
}

TEST(PlanParts, cut_evenly__covers_all_at_element_boundaries) {
  for (const uint64_t elements : {0, 1, 2, 3, 10, 1000, 1023}) {
    for (const uint32_t parts : {1U, 2U, 3U, 7U, 17U}) {
      const Region whole{1, 16, elements * 8};
      const auto cuts = cut_evenly(whole, parts, 8);
      ASSERT_EQ(parts, cuts.size());
      uint64_t at = whole.offset;
      for (const Region& cut : cuts) {
        EXPECT_EQ(at, cut.offset);
        EXPECT_EQ(0U, cut.length % 8);
        EXPECT_LE(cuts.back().length, cut.length);
        EXPECT_LE(cut.length, cuts.back().length + 8);
        at += cut.length;
      }
      EXPECT_EQ(whole.offset + whole.length, at);
    }
  }
}

TEST(PlanParts, plan_segments__keeps_within_its_bounds) {
  const PlanOptions options;
  for (uint64_t bytes = 1; bytes <= 4ULL << 30; bytes = bytes * 3 + 1) {
    const Segmentation result = plan_segments(bytes, options.segments_per_chunk, 20, options);
    EXPECT_EQ(0U, result.segment_bytes % 4096);
    EXPECT_GE(result.segment_bytes, options.segment_bytes_min);
    EXPECT_LE(result.segments_max * 20, options.steps_max);
    EXPECT_EQ((bytes + result.segment_bytes - 1) / result.segment_bytes, result.segments_max);
    if (result.segment_bytes > options.segment_bytes_max) {
      EXPECT_GE((result.segments_max + 1) * 20, options.steps_max * 9 / 10);
    }
  }
}

TEST(PlanParts, plan_segments__nothing_has_no_segments) {
  EXPECT_EQ(0U, plan_segments(0, 8, 20, {}).segments_max);
}

TEST(PlanParts, plan_segments__a_large_group_gets_one_segment_per_chunk) {
  EXPECT_EQ(1U, plan_segments(1 << 20, 8, 1'000'000, {}).segments_max);
}

TEST(PlanParts, take_scratch__regions_are_disjoint_and_aligned) {
  Schedule schedule;
  schedule.scratch_buffer = 5;
  const Region first = take_scratch(schedule, 100);
  const Region second = take_scratch(schedule, 1);
  EXPECT_EQ((Region{5, 0, 100}), first);
  EXPECT_EQ((Region{5, 128, 1}), second);
  EXPECT_EQ(192U, schedule.scratch_bytes);
}

TEST(PlanParts, add_copy__cuts_long_copies_and_skips_the_same_region) {
  Schedule schedule;
  const PlanOptions options;
  add_copy(schedule, {0, 0, 100}, {0, 0, 100}, options);
  add_copy(schedule, {0, 0, 0}, {1, 0, 0}, options);
  EXPECT_EQ(0U, schedule.steps.size());
  const uint64_t length = 2 * options.segment_bytes_max + 3;
  add_copy(schedule, {0, 0, length}, {1, 7, length}, options);
  ASSERT_EQ(3U, schedule.steps.size());
  EXPECT_EQ((Region{1, 7 + 2 * options.segment_bytes_max, 3}), schedule.steps[2].operand);
}

TEST(PlanParts, rank_at__goes_around) {
  const CollectiveRequest request{.rank = 1, .size = 4};
  EXPECT_EQ(0U, rank_at(request, 3));
  EXPECT_EQ(2U, rank_at(request, -3));
}

}  // namespace
}  // namespace securefabric::collective
