// Ranks that disagree about an operation: an error that names both sides, never garbage, never a
// hang.
#include <gtest/gtest.h>

#include <deque>

#include "sim/fleet.h"

namespace securefabric::sim {
namespace {

using base::Duration;
using base::ErrorCode;
using collective::DataType;
using collective::OperationKind;
using collective::ReduceOp;

// Rank 0 calls `ours`, the others call `theirs`; every rank must fail with a mismatch.
void expect_mismatch(const Call& ours, const Call& theirs, const std::string& our_text,
                     const std::string& their_text) {
  Fleet fleet(cluster_of(2));
  fleet.expect_works(all_reduce_of(10));
  CallRun& our_run = fleet.make_run(ours);
  CallRun& their_run = fleet.make_run(theirs);
  const Operations operations = {fleet.start(our_run, 0), fleet.start(their_run, 1)};
  EXPECT_TRUE(fleet.run_until_done(operations, Duration::seconds(3)))
      << describe(ours) << " / " << describe(theirs);
  for (const auto& operation : operations) {
    EXPECT_TRUE(failed_with(*operation, ErrorCode::kMismatch, our_text));
    EXPECT_TRUE(failed_with(*operation, ErrorCode::kMismatch, their_text));
  }
}

TEST(Mismatch, operation_kind_is_named_on_both_sides) {
  for (const uint64_t count : {10, 100'000}) {
    expect_mismatch(all_reduce_of(count), call_of(OperationKind::kAllGather, count),
                    "all_reduce(float32 x " + std::to_string(count) + ", SUM)",
                    "all_gather(float32 x " + std::to_string(2 * count) + ")");
  }
}

TEST(Mismatch, data_type_is_named_on_both_sides) {
  for (const uint64_t count : {10, 100'000}) {
    Call other = all_reduce_of(count);
    other.data_type = DataType::kInt32;  // as many bytes
    expect_mismatch(all_reduce_of(count), other, "all_reduce(float32", "all_reduce(int32");
  }
}

TEST(Mismatch, count_is_named_on_both_sides) {
  expect_mismatch(all_reduce_of(10), all_reduce_of(11), "float32 x 10,", "float32 x 11,");
  expect_mismatch(all_reduce_of(10), all_reduce_of(100'000), "float32 x 10,", "float32 x 100000,");
  expect_mismatch(all_reduce_of(100'000), all_reduce_of(100'001), "float32 x 100000,",
                  "float32 x 100001,");
}

// Without data nothing is sent, so this rank is done before it can know; the group is not.
TEST(Mismatch, count_zero_against_some__the_rank_that_waits_fails_and_the_group_is_broken) {
  Fleet fleet(cluster_of(2));
  fleet.expect_works(all_reduce_of(10));
  CallRun& nothing = fleet.make_run(all_reduce_of(0));
  CallRun& something = fleet.make_run(all_reduce_of(100'000));
  const Operations operations = {fleet.start(nothing, 0), fleet.start(something, 1)};
  EXPECT_TRUE(fleet.run_until_done(operations, Duration::seconds(3)));
  EXPECT_TRUE(failed_with(*operations[1], ErrorCode::kMismatch, "float32 x 0,"));
  EXPECT_TRUE(failed_with(*operations[1], ErrorCode::kMismatch, "float32 x 100000,"));
  const auto next = fleet.start(fleet.make_run(call_of(OperationKind::kBarrier, 0)), 0);
  EXPECT_TRUE(failed_with(*next, ErrorCode::kMismatch, "float32 x 100000,"));
}

TEST(Mismatch, reduce_operator_is_named_on_both_sides) {
  for (const uint64_t count : {10, 100'000}) {
    Call other = all_reduce_of(count);
    other.reduce_op = ReduceOp::kMax;
    expect_mismatch(all_reduce_of(count), other, "SUM)", "MAX)");
  }
}

TEST(Mismatch, root_is_named_on_both_sides__both_only_receive) {
  for (const uint64_t count : {10, 100'000}) {
    expect_mismatch(call_of(OperationKind::kBroadcast, count, /*root=*/1),
                    call_of(OperationKind::kBroadcast, count, /*root=*/0), "root 1)", "root 0)");
  }
}

TEST(Mismatch, root_is_named_on_both_sides__both_only_send) {
  for (const uint64_t count : {10, 100'000}) {
    Fleet fleet(cluster_of(2));
    fleet.expect_works(all_reduce_of(10));
    CallRun& ours = fleet.make_run(call_of(OperationKind::kBroadcast, count, 0));
    CallRun& theirs = fleet.make_run(call_of(OperationKind::kBroadcast, count, 1));
    const Operations operations = {fleet.start(ours, 0), fleet.start(theirs, 1)};
    EXPECT_TRUE(fleet.run_until_done(operations, Duration::seconds(3)));
    fleet.cluster.run_for(Duration::millis(100));
    // A small broadcast is done on the root when it is sent: then the next operation finds out.
    const Operations next = fleet.start_all(call_of(OperationKind::kBarrier, 0));
    EXPECT_TRUE(fleet.run_until_done(next, Duration::seconds(3)));
    for (const auto& operation : next) {
      EXPECT_TRUE(failed_with(*operation, ErrorCode::kMismatch, "root 0)"));
      EXPECT_TRUE(failed_with(*operation, ErrorCode::kMismatch, "root 1)"));
    }
  }
}

TEST(Mismatch, one_rank_skips_an_operation) {
  Fleet fleet(cluster_of(3));
  fleet.expect_works(all_reduce_of(10));
  CallRun& first = fleet.make_run(call_of(OperationKind::kReduceScatter, 10));
  CallRun& second = fleet.make_run(all_reduce_of(30));
  const Operations operations = {fleet.start(first, 0), fleet.start(second, 1),
                                 fleet.start(first, 2)};
  EXPECT_TRUE(fleet.run_until_done(operations, Duration::seconds(3)));
  for (const auto& operation : operations) {
    EXPECT_TRUE(failed_with(*operation, ErrorCode::kMismatch, "rank 1"));
    EXPECT_TRUE(failed_with(*operation, ErrorCode::kMismatch, "reduce_scatter("));
    EXPECT_TRUE(failed_with(*operation, ErrorCode::kMismatch, "all_reduce("));
  }
}

TEST(Mismatch, rank_that_arrives_late_with_another_operation) {
  Fleet fleet(cluster_of(2));
  fleet.expect_works(all_reduce_of(10));
  CallRun& first = fleet.make_run(call_of(OperationKind::kBroadcast, 100'000, 0));
  CallRun& second = fleet.make_run(call_of(OperationKind::kBarrier, 0));
  const auto ours = fleet.start(first, 0);
  fleet.cluster.run_for(Duration::seconds(20));
  EXPECT_FALSE(ours->is_done);
  const auto theirs = fleet.start(second, 1);
  EXPECT_TRUE(fleet.run_until_done({ours, theirs}, Duration::seconds(3)));
  EXPECT_TRUE(failed_with(*ours, ErrorCode::kMismatch, "barrier"));
  EXPECT_TRUE(failed_with(*theirs, ErrorCode::kMismatch, "broadcast("));
}

// A root runs far ahead; what it has forgotten it does not guess at.
TEST(Mismatch, root_that_is_hundreds_of_operations_ahead_is_not_accused) {
  Fleet fleet(cluster_of(2));
  fleet.expect_works(all_reduce_of(10));
  std::deque<CallRun> runs;
  Operations ahead;
  for (int i = 0; i < 600; ++i) {
    runs.emplace_back(call_of(OperationKind::kBroadcast, 10), 2);
    ahead.push_back(fleet.start(runs.back(), 0));
  }
  ASSERT_TRUE(fleet.run_until_done(ahead, Duration::seconds(1)));
  fleet.cluster.run_for(Duration::seconds(5));
  Operations behind;
  for (CallRun& run : runs) {
    behind.push_back(fleet.start(run, 1));
    ASSERT_TRUE(fleet.run_until_done({behind.back()}, Duration::seconds(1)));
    fleet.expect_right(run, {behind.back()});
  }
}

TEST(Mismatch, send_and_receive_of_different_lengths) {
  for (const size_t sent : {size_t{10}, size_t{100'000}}) {
    Fleet fleet(cluster_of(2));
    std::vector<uint8_t> from(sent);
    std::vector<uint8_t> to(20);
    const auto send = make_send(fleet.cluster.world(0), 1, 7, from);
    const auto receive = make_receive(fleet.cluster.world(1), 0, 7, to);
    fleet.cluster.start(0, send);
    fleet.cluster.start(1, receive);
    EXPECT_TRUE(fleet.run_until_done({send, receive}, Duration::seconds(3)));
    EXPECT_TRUE(
        failed_with(*receive, ErrorCode::kMismatch,
                    "rank 0 sends " + std::to_string(sent) + " bytes where rank 1 expects"));
  }
}

}  // namespace
}  // namespace securefabric::sim
