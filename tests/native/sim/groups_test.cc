// Ranks that disagree about a group: one id on the wire for two groups, or a group that not all
// have made. An error that names ranks and group, never a message of one group in another.
#include <gtest/gtest.h>

#include "sim/fleet.h"

namespace securefabric::sim {
namespace {

using base::Duration;
using base::ErrorCode;
using collective::Group;
using collective::kAnySource;
using collective::OperationKind;

using Bytes = std::vector<uint8_t>;

constexpr uint64_t kId = 77;  // of no other group

// As one rank sees it; `tail` tells groups of one id apart.
std::shared_ptr<Group> make_pair(uint32_t rank, uint8_t tail) {
  auto group = std::make_shared<Group>();
  group->wire_id = kId;
  group->tail.fill(tail);
  group->name = "pair";
  group->rank = rank;
  group->ranks = {base::Rank{0}, base::Rank{1}};
  return group;
}

// Two ranks whose groups have one id and are not one group.
struct Spliced {
  Spliced() : fleet(cluster_of(2)) {
    fleet.expect_works(all_reduce_of(10));
    for (uint32_t rank = 0; rank < 2; ++rank) {
      groups.push_back(make_pair(rank, static_cast<uint8_t>(rank)));
      EXPECT_TRUE(fleet.cluster.engine(rank).add_group(groups.back()));
    }
  }
  std::shared_ptr<collective::Operation> start(CallRun& run, uint32_t rank) {
    const auto operation = run.make_operation(groups[rank], base::Instant::never());
    fleet.cluster.start(rank, operation);
    return operation;
  }
  void expect_named(const collective::Operation& operation) {
    EXPECT_TRUE(failed_with(operation, ErrorCode::kMismatch, "which group this is: what rank 0"));
    EXPECT_TRUE(failed_with(operation, ErrorCode::kMismatch, "group 'pair' of rank 1"));
  }

  Fleet fleet;
  std::vector<std::shared_ptr<Group>> groups;  // by rank
};

TEST(Groups, collectives_of_two_groups_with_one_id_do_not_meet) {
  for (const uint64_t count : {10, 100'000}) {
    for (const bool is_late : {false, true}) {
      Spliced ranks;
      CallRun run(all_reduce_of(count), 2);
      const auto theirs = ranks.start(run, 0);
      if (is_late) ranks.fleet.cluster.run_for(Duration::millis(100));
      const auto ours = ranks.start(run, 1);
      ASSERT_TRUE(ranks.fleet.run_until_done({ours, theirs}, Duration::seconds(3)));
      EXPECT_TRUE(failed_with(*theirs, ErrorCode::kMismatch, "which group this is"));
      EXPECT_TRUE(failed_with(*ours, ErrorCode::kMismatch, "which group this is"));
    }
  }
}

TEST(Groups, messages_of_two_groups_with_one_id_do_not_meet) {
  for (const size_t size : {size_t{0}, size_t{10}, size_t{100'000}}) {
    for (const bool is_late : {false, true}) {
      for (const uint32_t source : {0u, kAnySource}) {
        Spliced ranks;
        Bytes sent(size, 55);
        Bytes received(size);
        const auto send = make_send(ranks.groups[0], 1, 7, sent);
        const auto receive = make_receive(ranks.groups[1], source, 7, received);
        ranks.fleet.cluster.start(0, send);
        if (is_late) ranks.fleet.cluster.run_for(Duration::millis(100));
        ranks.fleet.cluster.start(1, receive);
        ASSERT_TRUE(ranks.fleet.run_until_done({receive}, Duration::seconds(3)));
        ranks.expect_named(*receive);
        EXPECT_EQ(received, Bytes(size));
      }
    }
  }
}

// Nothing is sent in either direction, so they find out when one asks.
TEST(Groups, ranks_that_only_wait_find_out_that_they_are_in_two_groups) {
  Spliced ranks;
  CallRun run(call_of(OperationKind::kBroadcast, 10, /*root=*/0), 2);
  const auto waiting = ranks.start(run, 1);
  ASSERT_TRUE(ranks.fleet.run_until_done({waiting}, Duration::seconds(3)));
  ranks.expect_named(*waiting);
  ASSERT_TRUE(ranks.groups[0]->broken);
  EXPECT_EQ(ranks.groups[0]->broken->code, ErrorCode::kMismatch);
}

TEST(Groups, who_gives_up_another_group_with_the_same_id_is_named) {
  Spliced ranks;
  CallRun run(call_of(OperationKind::kBroadcast, 10, /*root=*/0), 2);
  const auto waiting = ranks.start(run, 1);
  ranks.fleet.cluster.engine(0).abort_group(*ranks.groups[0], {ErrorCode::kAborted, "enough"},
                                            ranks.fleet.cluster.now());
  ASSERT_TRUE(ranks.fleet.run_until_done({waiting}, Duration::seconds(3)));
  ranks.expect_named(*waiting);
}

TEST(Groups, a_timeout_tells_who_knows_no_such_group) {
  Fleet fleet(cluster_of(2));
  fleet.expect_works(all_reduce_of(10));
  const auto group = make_pair(0, 1);
  ASSERT_TRUE(fleet.cluster.engine(0).add_group(group));
  CallRun run(all_reduce_of(10), 2);
  const auto operation = run.make_operation(group, fleet.cluster.now() + Duration::seconds(5));
  fleet.cluster.start(0, operation);
  ASSERT_TRUE(fleet.run_until_done({operation}, Duration::seconds(10)));
  EXPECT_TRUE(failed_with(*operation, ErrorCode::kTimeout, "which knows no such group"));
}

TEST(Groups, a_group_that_a_rank_makes_late_works) {
  Fleet fleet(cluster_of(2));
  fleet.expect_works(all_reduce_of(10));
  CallRun run(all_reduce_of(10), 2);
  Operations operations;
  for (uint32_t rank = 0; rank < 2; ++rank) {
    if (rank == 1) fleet.cluster.run_for(Duration::seconds(5));
    const auto group = make_pair(rank, 1);
    ASSERT_TRUE(fleet.cluster.engine(rank).add_group(group));
    operations.push_back(run.make_operation(group, base::Instant::never()));
    fleet.cluster.start(rank, operations.back());
  }
  ASSERT_TRUE(fleet.run_until_done(operations, Duration::seconds(3)));
  fleet.expect_right(run, operations);
}

TEST(Groups, one_process_cannot_have_two_groups_with_one_id) {
  Fleet fleet(cluster_of(2));
  collective::Engine& engine = fleet.cluster.engine(0);
  ASSERT_TRUE(engine.add_group(make_pair(0, 1)));
  EXPECT_EQ(engine.add_group(make_pair(0, 2)).error().code, ErrorCode::kConfig);
  engine.remove_group(*make_pair(0, 1), fleet.cluster.now(), std::nullopt);
  EXPECT_EQ(engine.add_group(make_pair(0, 1)).error().code, ErrorCode::kConfig);
}

}  // namespace
}  // namespace securefabric::sim
