#include <gtest/gtest.h>

#include "collective/plan_algorithms.h"
#include "collective/plan_job.h"

namespace securefabric::collective::testing {
namespace {

void run_sizes(ReduceOp op, DataType type, Planner planner) {
  JobSpec spec{.op = op, .type = type};
  for (const ElementCount elements :
       {ElementCount([](uint32_t, uint32_t) -> uint64_t { return 0; }),
        ElementCount([](uint32_t, uint32_t) -> uint64_t { return 1; }),
        ElementCount([](uint32_t, uint32_t) -> uint64_t { return 13; }),
        ElementCount([](uint32_t, uint32_t) -> uint64_t { return 5003; })}) {
    spec.elements = elements;
    run_everywhere(spec, planner);
  }
}

// Every rank has the same bits, whatever NaNs, infinities and subnormals went in.
void expect_identical_bits(DataType type, ReduceOp op, Planner planner) {
  JobSpec spec{.op = op, .type = type, .has_random_bits = true};
  spec.elements = [](uint32_t, uint32_t) -> uint64_t { return 4099; };
  spec.options.segment_bytes_min = spec.options.segment_bytes_max = 4096;
  for (const uint32_t size : {2U, 3U, 5U, 8U}) {
    spec.size = size;
    Job job(spec);
    ASSERT_EQ("", job.run(planner, base_seed() + size)) << spec.describe();
    for (uint32_t rank = 1; rank < size; ++rank) {
      ASSERT_TRUE(job.output(rank, 0) == job.output(0, 0)) << spec.describe() << " rank " << rank;
    }
  }
}

TEST(PlanAllReduceDoubling, sums_at_every_size) {
  run_sizes(ReduceOp::kSum, DataType::kInt32, plan_all_reduce_doubling);
  run_sizes(ReduceOp::kSum, DataType::kUint8, plan_all_reduce_doubling);
}

TEST(PlanAllReduceDoubling, averages_and_scales) {
  run_sizes(ReduceOp::kAvg, DataType::kFloat32, plan_all_reduce_doubling);
  run_sizes(ReduceOp::kPremulSum, DataType::kComplex128, plan_all_reduce_doubling);
}

TEST(PlanAllReduceDoubling, results_are_identical_bit_by_bit) {
  for (const DataType type : {DataType::kFloat16, DataType::kBfloat16, DataType::kFloat32}) {
    for (const ReduceOp op : {ReduceOp::kAvg, ReduceOp::kProduct, ReduceOp::kMin, ReduceOp::kMax}) {
      expect_identical_bits(type, op, plan_all_reduce_doubling);
    }
  }
}

// The kernels commute, so no result shows it: both partners evaluate the same left (+) right.
TEST(PlanAllReduceDoubling, partners_evaluate_the_same_expression) {
  for (const uint32_t size : {2U, 5U, 8U, 13U}) {
    for (uint32_t rank = 0; rank < size; ++rank) {
      const Region tensor{0, 0, 8};
      const CollectiveRequest request{.kind = OperationKind::kAllReduce,
                                      .reduce_op = ReduceOp::kSum,
                                      .element_bytes = 8,
                                      .rank = rank,
                                      .size = size,
                                      .inputs = {tensor},
                                      .outputs = {tensor},
                                      .scratch_buffer = 1};
      for (const Step& step : plan_all_reduce_doubling(request, {}).steps) {
        if (step.kind != StepKind::kReceiveReduce) continue;
        EXPECT_EQ(step.peer < rank, step.received_is_left) << rank << " of " << size;
      }
    }
  }
}

TEST(PlanAllReduceDoubling, a_power_of_two_takes_two_steps_per_round) {
  for (const uint32_t rounds : {1U, 3U, 6U}) {
    const Region tensor{0, 0, 8};
    const CollectiveRequest request{.kind = OperationKind::kAllReduce,
                                    .reduce_op = ReduceOp::kSum,
                                    .element_bytes = 8,
                                    .size = 1U << rounds,
                                    .inputs = {tensor},
                                    .outputs = {tensor},
                                    .scratch_buffer = 1};
    const Schedule schedule = plan_all_reduce_doubling(request, {});
    EXPECT_EQ(2 * rounds, schedule.steps.size());
    EXPECT_EQ(0U, schedule.scratch_bytes);
  }
}

TEST(PlanAllReduceDoubling, long_sends_do_not_hold_up_the_next_round) {
  const Region tensor{0, 0, 64 << 10};
  const CollectiveRequest request{.kind = OperationKind::kAllReduce,
                                  .reduce_op = ReduceOp::kSum,
                                  .element_bytes = 4,
                                  .size = 16,
                                  .inputs = {tensor},
                                  .outputs = {tensor},
                                  .scratch_buffer = 1};
  const Schedule schedule = plan_all_reduce_doubling(request, {});
  EXPECT_EQ(tensor.length, schedule.scratch_bytes);
  for (uint32_t i = 0; i + 1 < schedule.steps.size(); ++i) {
    if (schedule.steps[i].kind != StepKind::kSend) continue;
    for (const uint32_t earlier : schedule.dependencies_of(schedule.steps[i + 1])) {
      EXPECT_NE(i, earlier) << "the receive of a round waits for the send of that round";
    }
  }
}

TEST(PlanAllReduceRing, sums_at_every_size) {
  run_sizes(ReduceOp::kSum, DataType::kInt32, plan_all_reduce_ring);
  run_sizes(ReduceOp::kSum, DataType::kUint8, plan_all_reduce_ring);
}

TEST(PlanAllReduceRing, averages_and_scales) {
  run_sizes(ReduceOp::kAvg, DataType::kFloat32, plan_all_reduce_ring);
  run_sizes(ReduceOp::kPremulSum, DataType::kComplex128, plan_all_reduce_ring);
}

TEST(PlanAllReduceRing, many_segments_per_chunk) {
  JobSpec spec{.op = ReduceOp::kSum, .type = DataType::kFloat32};
  spec.elements = [](uint32_t, uint32_t) -> uint64_t { return 40'009; };
  run_everywhere(spec, plan_all_reduce_ring);
  spec.op = ReduceOp::kPremulSum;
  run_everywhere(spec, plan_all_reduce_ring);
}

TEST(PlanAllReduceRing, results_are_identical_bit_by_bit) {
  for (const DataType type : {DataType::kFloat16, DataType::kBfloat16, DataType::kFloat32}) {
    for (const ReduceOp op : {ReduceOp::kAvg, ReduceOp::kProduct, ReduceOp::kMin, ReduceOp::kMax}) {
      expect_identical_bits(type, op, plan_all_reduce_ring);
    }
  }
}

// What waits for the network at once: all receives of the first journey.
TEST(PlanAllReduceRing, posts_the_first_journeys_receives_at_once) {
  const Region tensor{0, 0, 64 << 20};
  const CollectiveRequest request{.kind = OperationKind::kAllReduce,
                                  .reduce_op = ReduceOp::kSum,
                                  .element_bytes = 4,
                                  .rank = 1,
                                  .size = 4,
                                  .inputs = {tensor},
                                  .outputs = {tensor},
                                  .scratch_buffer = 1};
  const Schedule schedule = plan_all_reduce_ring(request, {});
  for (const Step& step : schedule.steps) {
    if (step.kind == StepKind::kReceiveReduce) {
      EXPECT_EQ(0U, step.dependency_count);
    }
  }
  EXPECT_EQ(0U, schedule.scratch_bytes);
}

}  // namespace
}  // namespace securefabric::collective::testing
