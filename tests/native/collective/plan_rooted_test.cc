#include <gtest/gtest.h>

#include "collective/plan_algorithms.h"
#include "collective/plan_job.h"

namespace securefabric::collective::testing {
namespace {

void run_sizes(OperationKind kind, ReduceOp op, DataType type, Planner planner) {
  JobSpec spec{.kind = kind, .op = op, .type = type};
  for (const ElementCount elements :
       {ElementCount([](uint32_t, uint32_t) -> uint64_t { return 0; }),
        ElementCount([](uint32_t, uint32_t) -> uint64_t { return 1; }),
        ElementCount([](uint32_t, uint32_t) -> uint64_t { return 777; }),
        ElementCount([](uint32_t, uint32_t) -> uint64_t { return 30'011; })}) {
    spec.elements = elements;
    run_everywhere(spec, planner, 2);
  }
}

TEST(PlanBroadcastTree, reaches_everybody_from_every_root) {
  run_sizes(OperationKind::kBroadcast, ReduceOp::kNone, DataType::kByte, plan_broadcast_tree);
}

TEST(PlanBroadcastChain, reaches_everybody_from_every_root) {
  run_sizes(OperationKind::kBroadcast, ReduceOp::kNone, DataType::kByte, plan_broadcast_chain);
}

TEST(PlanReduceTree, sums_averages_and_scales_at_every_root) {
  run_sizes(OperationKind::kReduce, ReduceOp::kSum, DataType::kInt32, plan_reduce_tree);
  run_sizes(OperationKind::kReduce, ReduceOp::kAvg, DataType::kFloat32, plan_reduce_tree);
  run_sizes(OperationKind::kReduce, ReduceOp::kPremulSum, DataType::kFloat32, plan_reduce_tree);
}

TEST(PlanReduceTree, a_leaf_sends_its_input) {
  const CollectiveRequest request{.kind = OperationKind::kReduce,
                                  .reduce_op = ReduceOp::kSum,
                                  .rank = 3,
                                  .size = 4,
                                  .inputs = {{0, 0, 100}},
                                  .scratch_buffer = 1};
  const Schedule schedule = plan_reduce_tree(request, {});
  ASSERT_EQ(1U, schedule.steps.size());
  EXPECT_EQ(request.inputs[0], schedule.steps[0].target);
  EXPECT_EQ(0U, schedule.scratch_bytes);
}

TEST(PlanReduceChain, sums_averages_and_scales_at_every_root) {
  run_sizes(OperationKind::kReduce, ReduceOp::kSum, DataType::kInt32, plan_reduce_chain);
  run_sizes(OperationKind::kReduce, ReduceOp::kAvg, DataType::kFloat32, plan_reduce_chain);
  run_sizes(OperationKind::kReduce, ReduceOp::kPremulSum, DataType::kFloat32, plan_reduce_chain);
}

TEST(PlanReduceChain, scratch_memory_does_not_grow_with_the_tensor) {
  const CollectiveRequest request{.kind = OperationKind::kReduce,
                                  .reduce_op = ReduceOp::kSum,
                                  .rank = 1,
                                  .size = 3,
                                  .inputs = {{0, 0, 1ULL << 30}},
                                  .scratch_buffer = 1};
  const PlanOptions options;
  EXPECT_LE(plan_reduce_chain(request, options).scratch_bytes, options.window_bytes);
}

}  // namespace
}  // namespace securefabric::collective::testing
