#include "collective/plan.h"

#include <gtest/gtest.h>

#include "collective/plan_algorithms.h"
#include "collective/plan_job.h"

namespace securefabric::collective::testing {
namespace {

constexpr OperationKind kCollectives[] = {
    OperationKind::kAllReduce, OperationKind::kBroadcast,     OperationKind::kReduce,
    OperationKind::kAllGather, OperationKind::kReduceScatter, OperationKind::kAllToAll,
    OperationKind::kGather,    OperationKind::kScatter,
};

bool is_reduction(OperationKind kind) {
  return kind == OperationKind::kAllReduce || kind == OperationKind::kReduce ||
         kind == OperationKind::kReduceScatter;
}

Schedule plan_default(const CollectiveRequest& request, const PlanOptions& options) {
  return plan(request, options);
}

// A request whose regions all have `bytes`, disjoint.
CollectiveRequest make_request(OperationKind kind, uint32_t rank, uint32_t size, uint64_t bytes) {
  CollectiveRequest request{.kind = kind,
                            .reduce_op = is_reduction(kind) ? ReduceOp::kSum : ReduceOp::kNone,
                            .element_bytes = 1,
                            .rank = rank,
                            .size = size,
                            .scratch_buffer = 2};
  const bool has_one_input = kind == OperationKind::kAllReduce ||
                             kind == OperationKind::kBroadcast || kind == OperationKind::kReduce ||
                             kind == OperationKind::kAllGather || kind == OperationKind::kGather;
  const bool has_one_output = kind != OperationKind::kAllGather && kind != OperationKind::kGather &&
                              kind != OperationKind::kAllToAll;
  for (uint32_t i = 0; i < (has_one_input ? 1 : size); ++i) {
    request.inputs.push_back({0, i * bytes, bytes});
  }
  for (uint32_t i = 0; i < (has_one_output ? 1 : size); ++i) {
    request.outputs.push_back({1, i * bytes, bytes});
  }
  return request;
}

bool is_equal(const Schedule& a, const Schedule& b) {
  if (a.steps.size() != b.steps.size() || a.dependencies != b.dependencies) return false;
  for (size_t i = 0; i < a.steps.size(); ++i) {
    if (a.steps[i].kind != b.steps[i].kind || a.steps[i].target != b.steps[i].target) return false;
  }
  return a.scratch_bytes == b.scratch_bytes;
}

TEST(Plan, every_kind_at_small_and_large_sizes) {
  for (const OperationKind kind : kCollectives) {
    JobSpec spec{.kind = kind, .type = DataType::kInt32};
    if (is_reduction(kind)) spec.op = ReduceOp::kSum;
    spec.elements = [](uint32_t from, uint32_t to) -> uint64_t { return 5 + (from + to) % 3; };
    run_everywhere(spec, plan_default);
    // Above every threshold of the options that run_everywhere leaves as they are.
    spec.options.all_reduce_doubling_bytes = 0;
    spec.options.all_reduce_doubling_bytes_per_rank = 0;
    spec.options.reduce_scatter_direct_bytes = 0;
    spec.options.all_gather_bruck_bytes = 0;
    spec.options.tree_bytes_per_rank = 0;
    spec.elements = [](uint32_t, uint32_t) -> uint64_t { return 3001; };
    run_everywhere(spec, plan_default);
  }
}

TEST(Plan, alone__copies_and_sends_nothing) {
  for (const OperationKind kind : kCollectives) {
    JobSpec spec{.kind = kind, .type = DataType::kFloat32, .size = 1};
    spec.elements = [](uint32_t, uint32_t) -> uint64_t { return 11; };
    for (const ReduceOp op : {ReduceOp::kSum, ReduceOp::kAvg, ReduceOp::kPremulSum}) {
      spec.op = is_reduction(kind) ? op : ReduceOp::kNone;
      for (const bool in_place : {false, true}) {
        spec.in_place = in_place;
        Job job(spec);
        EXPECT_EQ("", job.run(plan_default, 1)) << spec.describe();
      }
    }
  }
  EXPECT_TRUE(plan({.kind = OperationKind::kBarrier}).steps.empty());
}

// An average over one rank is an exact copy: not even a NaN loses its payload.
TEST(Plan, alone__average_divides_nothing) {
  CollectiveRequest request = make_request(OperationKind::kAllReduce, 0, 1, 8);
  request.reduce_op = ReduceOp::kAvg;
  const Schedule schedule = plan(request);
  ASSERT_EQ(1U, schedule.steps.size());
  EXPECT_EQ(StepKind::kCopy, schedule.steps[0].kind);
}

TEST(Plan, nothing_to_move_is_no_step) {
  for (const OperationKind kind : kCollectives) {
    EXPECT_TRUE(plan(make_request(kind, 0, 5, 0)).steps.empty()) << operation_kind_name(kind);
  }
}

TEST(Plan, chooses_by_size) {
  const PlanOptions options;
  const auto expect = [&](OperationKind kind, uint32_t size, uint64_t bytes, Planner planner) {
    const CollectiveRequest request = make_request(kind, 1, size, bytes);
    EXPECT_TRUE(is_equal(plan(request, options), planner(request, options)))
        << operation_kind_name(kind) << " of " << size << ", " << bytes << " bytes";
  };
  expect(OperationKind::kAllReduce, 4, 64 << 10, plan_all_reduce_doubling);
  expect(OperationKind::kAllReduce, 4, (64 << 10) + 1, plan_all_reduce_ring);
  expect(OperationKind::kAllReduce, 64, 256 << 10, plan_all_reduce_doubling);
  expect(OperationKind::kBroadcast, 4, 64 << 10, plan_broadcast_tree);
  expect(OperationKind::kBroadcast, 4, (64 << 10) + 1, plan_broadcast_chain);
  expect(OperationKind::kBroadcast, 2, 64 << 20, plan_broadcast_tree);
  expect(OperationKind::kReduce, 4, 64 << 10, plan_reduce_tree);
  expect(OperationKind::kReduce, 4, (64 << 10) + 1, plan_reduce_chain);
  expect(OperationKind::kAllGather, 4, 64 << 10, plan_all_gather_direct);
  expect(OperationKind::kAllGather, 8, 32 << 10, plan_all_gather_bruck);
  expect(OperationKind::kAllGather, 4, (64 << 10) + 1, plan_all_gather_ring);
  expect(OperationKind::kReduceScatter, 8, 16 << 10, plan_reduce_scatter_direct);
  expect(OperationKind::kReduceScatter, 8, (16 << 10) + 1, plan_reduce_scatter_ring);
}

TEST(Plan, steps_are_bounded) {
  const PlanOptions options;
  for (const OperationKind kind : kCollectives) {
    for (const uint32_t size : {2U, 3U, 8U, 64U, 256U}) {
      for (const uint64_t bytes : {1ULL << 20, 100ULL << 20, 8ULL << 30}) {
        CollectiveRequest request = make_request(kind, 0, size, bytes);
        if (is_reduction(kind)) request.reduce_op = ReduceOp::kPremulSum;
        const Schedule schedule = plan(request, options);
        // A local copy may add its pieces to those of the pipeline.
        EXPECT_LE(schedule.steps.size(), options.steps_max + 1024)
            << operation_kind_name(kind) << " of " << size << ", " << bytes << " bytes";
      }
    }
  }
}

TEST(PlanDeathTest, refuses_what_breaks_the_contract) {
  CollectiveRequest request = make_request(OperationKind::kAllReduce, 0, 2, 16);
  request.rank = 2;
  EXPECT_DEATH(plan(request), "2, 0 of 2");
  request = make_request(OperationKind::kAllReduce, 0, 2, 16);
  request.outputs[0].length = 8;
  EXPECT_DEATH(plan(request), "16 != 8");
  request = make_request(OperationKind::kAllReduce, 0, 2, 16);
  request.outputs[0] = {0, 4, 16};
  EXPECT_DEATH(plan(request), "overlaps");
  request = make_request(OperationKind::kAllReduce, 0, 2, 10);
  request.element_bytes = 4;
  EXPECT_DEATH(plan(request), "0 \\+ 10");
  request = make_request(OperationKind::kAllGather, 0, 3, 4);
  request.outputs.pop_back();
  EXPECT_DEATH(plan(request), "2 for 3");
  request = make_request(OperationKind::kAllReduce, 0, 2, 16);
  request.reduce_op = ReduceOp::kNone;
  EXPECT_DEATH(plan(request), "is_reduction");
  request = make_request(OperationKind::kAllReduce, 0, 2, 16);
  request.scratch_buffer = 1;
  EXPECT_DEATH(plan(request), "scratch_buffer");
}

}  // namespace
}  // namespace securefabric::collective::testing
