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
  return 1501;
}
// Empty, tiny and long chunks side by side.
uint64_t uneven(uint32_t, uint32_t to) {
  return to % 3 == 1 ? 0 : (to * 1237) % 4000 + 1;
}
uint64_t only_the_last(uint32_t, uint32_t to) {
  return to == 1 ? 7777 : 0;
}

void run_sizes(ReduceOp op, DataType type, Planner planner) {
  JobSpec spec{.kind = OperationKind::kReduceScatter, .op = op, .type = type};
  for (const ElementCount elements : {none, one, even, uneven, only_the_last}) {
    spec.elements = elements;
    run_everywhere(spec, planner);
  }
}

CollectiveRequest make_request(uint32_t size, uint64_t chunk_bytes) {
  CollectiveRequest request{.kind = OperationKind::kReduceScatter,
                            .reduce_op = ReduceOp::kSum,
                            .element_bytes = 4,
                            .size = size,
                            .outputs = {{1, 0, chunk_bytes}},
                            .scratch_buffer = 2};
  for (uint32_t i = 0; i < size; ++i) request.inputs.push_back({0, i * chunk_bytes, chunk_bytes});
  return request;
}

TEST(PlanReduceScatterDirect, sums_at_every_size) {
  run_sizes(ReduceOp::kSum, DataType::kInt32, plan_reduce_scatter_direct);
  run_sizes(ReduceOp::kSum, DataType::kUint8, plan_reduce_scatter_direct);
}

TEST(PlanReduceScatterDirect, averages_and_scales) {
  run_sizes(ReduceOp::kAvg, DataType::kFloat32, plan_reduce_scatter_direct);
  run_sizes(ReduceOp::kPremulSum, DataType::kComplex128, plan_reduce_scatter_direct);
}

TEST(PlanReduceScatterDirect, not_everybody_sends_to_rank_0_first) {
  CollectiveRequest request = make_request(4, 64);
  request.rank = 2;
  const Schedule schedule = plan_reduce_scatter_direct(request, {});
  EXPECT_EQ(StepKind::kSend, schedule.steps[0].kind);
  EXPECT_EQ(3U, schedule.steps[0].peer);
}

TEST(PlanReduceScatterRing, sums_at_every_size) {
  run_sizes(ReduceOp::kSum, DataType::kInt32, plan_reduce_scatter_ring);
  run_sizes(ReduceOp::kSum, DataType::kUint8, plan_reduce_scatter_ring);
}

TEST(PlanReduceScatterRing, averages_and_scales) {
  run_sizes(ReduceOp::kAvg, DataType::kFloat32, plan_reduce_scatter_ring);
  run_sizes(ReduceOp::kPremulSum, DataType::kComplex128, plan_reduce_scatter_ring);
}

// More segments than fit the scratch window several times over.
TEST(PlanReduceScatterRing, reuses_a_small_window) {
  JobSpec spec{.kind = OperationKind::kReduceScatter, .type = DataType::kFloat64};
  spec.elements = [](uint32_t, uint32_t to) -> uint64_t { return 512 * 9 + to % 5 * 512 + to; };
  for (const ReduceOp op : {ReduceOp::kSum, ReduceOp::kPremulSum}) {
    spec.op = op;
    run_everywhere(spec, plan_reduce_scatter_ring, 2);
  }
}

TEST(PlanReduceScatterRing, scratch_memory_does_not_grow_with_the_chunks) {
  const PlanOptions options;
  for (const uint32_t size : {2U, 3U, 8U, 64U}) {
    for (const uint64_t chunk_bytes : {100'000ULL, 10ULL << 20, 128ULL << 20}) {
      const Schedule schedule = plan_reduce_scatter_ring(make_request(size, chunk_bytes), options);
      EXPECT_LE(schedule.scratch_bytes, 2 * options.window_bytes) << size << " " << chunk_bytes;
    }
  }
  EXPECT_EQ(0U, plan_reduce_scatter_ring(make_request(2, 1 << 20), options).scratch_bytes);
}

}  // namespace
}  // namespace securefabric::collective::testing
