#include <gtest/gtest.h>

#include "collective/plan_algorithms.h"
#include "collective/plan_job.h"

namespace securefabric::collective::testing {
namespace {

uint64_t none(uint32_t, uint32_t) {
  return 0;
}
uint64_t one(uint32_t, uint32_t) {
  return 1;
}
uint64_t even(uint32_t, uint32_t) {
  return 5000;
}
uint64_t uneven(uint32_t from, uint32_t to) {
  return (from * 7 + to * 3) % 4 * 1300;
}

void run_sizes(OperationKind kind, Planner planner) {
  JobSpec spec{.kind = kind};
  for (const DataType type : {DataType::kByte, DataType::kFloat32}) {
    spec.type = type;
    for (const ElementCount elements : {none, one, even, uneven}) {
      spec.elements = elements;
      run_everywhere(spec, planner);
    }
  }
}

TEST(PlanExchange, plan_gather__every_root_and_split) {
  run_sizes(OperationKind::kGather, plan_gather);
}

TEST(PlanExchange, plan_scatter__every_root_and_split) {
  run_sizes(OperationKind::kScatter, plan_scatter);
}

TEST(PlanExchange, plan_all_to_all__every_split) {
  run_sizes(OperationKind::kAllToAll, plan_all_to_all);
}

TEST(PlanExchange, plan_all_to_all__takes_the_nearest_peers_first) {
  CollectiveRequest request{.kind = OperationKind::kAllToAll, .rank = 2, .size = 4};
  for (uint32_t i = 0; i < 4; ++i) {
    request.inputs.push_back({0, i, 1});
    request.outputs.push_back({1, i, 1});
  }
  request.scratch_buffer = 2;
  const Schedule schedule = plan_all_to_all(request, {});
  std::vector<uint32_t> from;
  std::vector<uint32_t> to;
  for (const Step& step : schedule.steps) {
    if (step.kind == StepKind::kReceiveCopy) from.push_back(step.peer);
    if (step.kind == StepKind::kSend) to.push_back(step.peer);
  }
  EXPECT_EQ((std::vector<uint32_t>{1, 0, 3}), from);
  EXPECT_EQ((std::vector<uint32_t>{3, 0, 1}), to);
}

// Nobody leaves a barrier before everybody has entered it.
TEST(PlanExchange, plan_barrier__every_end_is_after_every_start) {
  for (const uint32_t size : {2U, 3U, 4U, 7U, 8U, 9U, 17U, 33U}) {
    std::vector<Schedule> schedules;
    std::vector<std::set<uint32_t>> heard(size);  // per rank: who has certainly entered
    for (uint32_t rank = 0; rank < size; ++rank) {
      schedules.push_back(plan_barrier({.rank = rank, .size = size}));
      heard[rank].insert(rank);
    }
    ASSERT_EQ("", ScheduleChecker(schedules, 0).check());
    for (size_t step = 0; step < schedules[0].steps.size(); step += 2) {
      const auto before = heard;
      for (uint32_t rank = 0; rank < size; ++rank) {
        const Step& send = schedules[rank].steps[step];
        EXPECT_EQ(step / 2, send.dependency_count);
        heard[send.peer].insert(before[rank].begin(), before[rank].end());
      }
    }
    for (uint32_t rank = 0; rank < size; ++rank) EXPECT_EQ(size, heard[rank].size());
  }
}

TEST(PlanExchange, plan_point_to_point__sends_even_nothing) {
  const CollectiveRequest sender{.kind = OperationKind::kSend,
                                 .rank = 0,
                                 .size = 2,
                                 .root = 1,
                                 .inputs = {{0, 0, 0}},
                                 .scratch_buffer = 1};
  const CollectiveRequest receiver{.kind = OperationKind::kReceive,
                                   .rank = 1,
                                   .size = 2,
                                   .root = 0,
                                   .outputs = {{0, 0, 0}},
                                   .scratch_buffer = 1};
  const std::vector<Schedule> schedules{plan(sender), plan(receiver)};
  EXPECT_EQ(1U, schedules[0].steps.size());
  CollectiveRequest from_anyone = receiver;
  from_anyone.root = UINT32_MAX;
  EXPECT_EQ(UINT32_MAX, plan(from_anyone).steps[0].peer);
  EXPECT_EQ("", ScheduleChecker(schedules, 0).check());
}

}  // namespace
}  // namespace securefabric::collective::testing
