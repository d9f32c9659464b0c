// The checker and the interpreter are the oracle of the planners: here they must find what is wrong
// with schedules that are.
#include "collective/schedule_checker.h"

#include <gtest/gtest.h>

#include "collective/plan_parts.h"
#include "collective/schedule_interpreter.h"

namespace securefabric::collective::testing {
namespace {

constexpr Region kInput{0, 0, 4};
constexpr Region kOutput{0, 4, 4};

// Rank 0 sends its input, rank 1 receives it into its output.
std::vector<Schedule> make_pair() {
  std::vector<Schedule> schedules(2);
  schedules[0].add(make_send(1, 0, kInput));
  schedules[1].add(make_receive(0, 0, kOutput));
  return schedules;
}

std::string check(const std::vector<Schedule>& schedules, uint64_t copied_send_bytes = 0) {
  return ScheduleChecker(schedules, copied_send_bytes).check();
}

std::string run(const std::vector<Schedule>& schedules, uint64_t seed) {
  std::vector<Member> members;
  for (const Schedule& schedule : schedules) {
    members.push_back({.schedule = schedule,
                       .buffers = {{1, 2, 3, 4, 5, 6, 7, 8}},
                       .is_defined = {{1, 1, 1, 1, 0, 0, 0, 0}}});
    members.back().schedule.scratch_buffer = 1;
  }
  return ScheduleInterpreter(members, DataType::kUint8, ReduceOp::kSum, 0, seed).run();
}

TEST(ScheduleChecker, accepts_a_message) {
  EXPECT_EQ("", check(make_pair()));
}

TEST(ScheduleChecker, finds_what_is_not_paired) {
  auto schedules = make_pair();
  schedules[0].add(make_send(1, 0, kOutput));
  EXPECT_EQ("rank 0 step 1: slot used twice", check(schedules));
  schedules = make_pair();
  schedules[0].add(make_send(1, 1, kOutput));
  EXPECT_EQ("a send has no receive", check(schedules));
  schedules = make_pair();
  schedules[1].add(make_receive(0, 1, kOutput));
  EXPECT_EQ("rank 1 step 1: receive without send, or second one", check(schedules));
  schedules = make_pair();
  schedules[1].steps[0].target.length = 3;
  EXPECT_EQ("rank 1 step 0: length", check(schedules));
}

TEST(ScheduleChecker, finds_a_deadlock_that_copied_sends_would_hide) {
  std::vector<Schedule> schedules(2);
  for (uint32_t rank = 0; rank < 2; ++rank) {
    const uint32_t sent = schedules[rank].add(make_send(1 - rank, 0, kInput));
    schedules[rank].add(make_receive(1 - rank, 0, kOutput), {sent});
  }
  EXPECT_EQ("deadlock", check(schedules, 3));
  EXPECT_EQ("", check(schedules, 4));
  EXPECT_EQ("4 steps hang", run(schedules, 1));
}

TEST(ScheduleChecker, finds_a_read_before_the_receive) {
  auto schedules = make_pair();
  schedules[1].add(make_copy({0, 0, 2}, {0, 6, 2}));
  EXPECT_EQ("rank 1 step 1 may touch memory before step 0 is done", check(schedules));
  EXPECT_NE("", run(schedules, 1) + run(schedules, 2) + run(schedules, 3) + run(schedules, 4));
}

TEST(ScheduleChecker, finds_an_overwritten_send) {
  auto schedules = make_pair();
  schedules[0].add(make_copy(kInput, kOutput));
  EXPECT_NE("", check(schedules));
  schedules = make_pair();
  schedules[0].add(make_copy(kInput, kOutput), {0});
  EXPECT_EQ("", check(schedules));
}

// What comes back from the receiver, after it has everything, may overwrite what was sent.
TEST(ScheduleChecker, accepts_what_data_flow_orders) {
  auto schedules = make_pair();
  schedules[0].add(make_receive(1, 0, kInput));
  auto too_early = schedules;
  schedules[1].add(make_send(0, 0, kOutput), {0});
  EXPECT_EQ("", check(schedules));
  too_early[1].add(make_send(0, 0, kInput));
  EXPECT_EQ("rank 0 step 1 may touch memory before step 0 is done", check(too_early));
}

}  // namespace
}  // namespace securefabric::collective::testing
