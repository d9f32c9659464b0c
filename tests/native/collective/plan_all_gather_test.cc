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
  return 2501;
}
// Empty, tiny and long chunks side by side.
uint64_t uneven(uint32_t from, uint32_t) {
  return from % 3 == 1 ? 0 : (from * 1237) % 6000 + 1;
}
uint64_t only_one_rank(uint32_t from, uint32_t) {
  return from == 1 ? 7777 : 0;
}

void run_sizes(Planner planner) {
  JobSpec spec{.kind = OperationKind::kAllGather};
  for (const DataType type : {DataType::kByte, DataType::kComplex128}) {
    spec.type = type;
    for (const ElementCount elements : {none, one, even, uneven, only_one_rank}) {
      spec.elements = elements;
      run_everywhere(spec, planner);
    }
  }
}

TEST(PlanAllGatherDirect, gathers_at_every_size) {
  run_sizes(plan_all_gather_direct);
}

TEST(PlanAllGatherBruck, gathers_at_every_size) {
  run_sizes(plan_all_gather_bruck);
}

TEST(PlanAllGatherBruck, one_message_each_way_per_round) {
  CollectiveRequest request{.kind = OperationKind::kAllGather,
                            .rank = 3,
                            .size = 100,
                            .inputs = {{0, 0, 8}},
                            .scratch_buffer = 2};
  for (uint32_t i = 0; i < request.size; ++i) request.outputs.push_back({1, i * 8, 8});
  const Schedule schedule = plan_all_gather_bruck(request, {});
  const auto network = std::count_if(schedule.steps.begin(), schedule.steps.end(),
                                     [](const Step& step) { return is_network(step.kind); });
  EXPECT_EQ(2 * 7, network);
  // Adjacent outputs are filled together: one copy per round, one more where the ranks wrap, the
  // own chunk to scratch and to its output.
  EXPECT_EQ(7U + 1 + 2, schedule.steps.size() - static_cast<size_t>(network));
}

TEST(PlanAllGatherRing, gathers_at_every_size) {
  run_sizes(plan_all_gather_ring);
}

TEST(PlanAllGatherRing, many_segments_per_chunk) {
  JobSpec spec{.kind = OperationKind::kAllGather, .type = DataType::kInt32};
  spec.elements = [](uint32_t from, uint32_t) -> uint64_t { return 9001 + from % 4 * 1024; };
  run_everywhere(spec, plan_all_gather_ring);
}

}  // namespace
}  // namespace securefabric::collective::testing
