#include "collective/schedule.h"

#include <gtest/gtest.h>

namespace securefabric::collective {
namespace {

TEST(Schedule, add__keeps_each_steps_dependencies_apart) {
  Schedule schedule;
  const uint32_t first = schedule.add({.slot = 7});
  const uint32_t second = schedule.add({}, {first});
  const uint32_t third = schedule.add({}, {first, second});
  EXPECT_EQ(2U, third);
  EXPECT_TRUE(schedule.dependencies_of(schedule.steps[first]).empty());
  const auto both = schedule.dependencies_of(schedule.steps[third]);
  EXPECT_EQ((std::vector<uint32_t>{first, second}),
            std::vector<uint32_t>(both.begin(), both.end()));
  EXPECT_EQ(1U, schedule.dependencies_of(schedule.steps[second]).size());
}

TEST(Schedule, add__skips_no_step) {
  Schedule schedule;
  const uint32_t first = schedule.add({});
  const uint32_t second = schedule.add({}, {kNoStep, first, kNoStep});
  EXPECT_EQ(1U, schedule.steps[second].dependency_count);
}

TEST(ScheduleDeathTest, add__refuses_a_later_step) {
  Schedule schedule;
  EXPECT_DEATH(schedule.add({}, {0}), "0 >= 0");
}

TEST(Region, overlaps__only_within_a_buffer) {
  const Region region{0, 10, 10};
  EXPECT_TRUE(region.overlaps({0, 19, 1}));
  EXPECT_TRUE(region.overlaps({0, 0, 100}));
  EXPECT_FALSE(region.overlaps({0, 20, 5}));
  EXPECT_FALSE(region.overlaps({1, 10, 10}));
  EXPECT_FALSE(region.overlaps({0, 12, 0}));
}

}  // namespace
}  // namespace securefabric::collective
