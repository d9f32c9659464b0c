#include "sim/timeline.h"

#include <gtest/gtest.h>

#include "sim/fleet.h"

namespace securefabric::sim {
namespace {

using base::Duration;
using base::Instant;
using base::Rank;

TEST(Timeline, expand__at_once) {
  LinkEvent event;
  event.at = Duration::millis(5);
  event.links.index = 3;
  event.settings = {{find_link_knob("loss"), 0.5}, {find_link_knob("down"), 1}};
  const auto changes = expand(event);
  ASSERT_EQ(changes.size(), 2u);
  EXPECT_EQ(changes[0].at, Instant() + Duration::millis(5));
  EXPECT_EQ(changes[0].change.links.index, 3u);
  EXPECT_EQ(changes[0].change.value, 0.5);
  EXPECT_EQ(changes[1].change.steps_left, 1u);
}

TEST(Timeline, expand__ramp_ends_at_the_value) {
  LinkEvent event;
  event.settings = {{find_link_knob("rate_mbit"), 10}};
  event.ramp = Duration::millis(32);
  const auto changes = expand(event);
  ASSERT_EQ(changes.size(), kRampSteps);
  EXPECT_EQ(changes.front().at, Instant() + Duration::millis(1));
  EXPECT_EQ(changes.front().change.steps_left, kRampSteps);
  EXPECT_EQ(changes.back().at, Instant() + Duration::millis(32));
  EXPECT_EQ(changes.back().change.steps_left, 1u);
}

TEST(Timeline, expand__flapping_ends_up) {
  LinkEvent event;
  event.at = Duration::millis(10);
  event.flap = Duration::millis(4);
  event.until = Duration::millis(17);
  const auto changes = expand(event);
  ASSERT_EQ(changes.size(), 4u);
  const std::vector<std::pair<int64_t, double>> wanted = {{10, 1}, {12, 0}, {14, 1}, {16, 0}};
  for (size_t i = 0; i < wanted.size(); ++i) {
    EXPECT_EQ(changes[i].at, Instant() + Duration::millis(wanted[i].first));
    EXPECT_EQ(changes[i].change.value, wanted[i].second);
  }
}

TEST(Timeline, script__links_change_while_a_collective_runs) {
  ClusterOptions options = cluster_of(2);
  options.link.rate_bits_per_second = 100'000'000;
  Fleet fleet(options);
  LinkEvent all_down;
  all_down.at = Duration::millis(20);
  all_down.settings = {{find_link_knob("down"), 1}};
  fleet.cluster.script(all_down);
  LinkEvent one_up;
  one_up.at = Duration::millis(500);
  one_up.links.index = 0;
  one_up.settings = {{find_link_knob("down"), 0}};
  fleet.cluster.script(one_up);
  CallRun& run = fleet.make_run(all_reduce_of(1'000'000));
  const Operations operations = fleet.start_all(run);
  EXPECT_FALSE(fleet.run_until_done(operations, Duration::millis(499)));
  EXPECT_TRUE(fleet.run_until_done(operations, Duration::seconds(3)));
  fleet.expect_right(run, operations);
  EXPECT_TRUE(fleet.cluster.link({Rank{0}, Rank{1}, 1, 1}).options().is_blackhole);
}

}  // namespace
}  // namespace securefabric::sim
