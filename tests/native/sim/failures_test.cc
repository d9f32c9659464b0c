// Peers that die, never come, or are strangers: every survivor gets an error that names them, in
// time.
#include <gtest/gtest.h>

#include <algorithm>

#include "sim/fleet.h"

namespace securefabric::sim {
namespace {

using base::Duration;
using base::ErrorCode;
using collective::OperationKind;

class KilledPeer : public testing::TestWithParam<OperationKind> {};

TEST_P(KilledPeer, fails_every_survivor_by_name_within_the_death_timeout) {
  for (const uint64_t count : {0, 10, 500'000}) {
    if (count == 0 && GetParam() != OperationKind::kBarrier) continue;  // sends nothing
    ClusterOptions options = cluster_of(4, count + 1);
    options.death_timeout = Duration::seconds(3);
    options.link.rate_bits_per_second = 1'000'000'000;
    Fleet fleet(options);
    fleet.expect_works(call_of(OperationKind::kAllToAll, 100));  // everybody knows everybody
    fleet.cluster.kill(2);
    const Operations operations = fleet.start_all(call_of(GetParam(), count, /*root=*/2));
    EXPECT_TRUE(fleet.run_until_done(operations, Duration::millis(3'100)));
    for (const auto& operation : operations) {
      EXPECT_TRUE(failed_with(*operation, ErrorCode::kPeerLost, "rank 2 (10.0.0.2:4000) is lost"));
    }
    // Later operations fail at once.
    const Operations later = fleet.start_all(call_of(OperationKind::kBarrier, 0));
    for (const auto& operation : later) {
      EXPECT_TRUE(failed_with(*operation, ErrorCode::kPeerLost, "rank 2"));
    }
  }
}

// Gather is left out: who sends a small tensor to a dead root is done when it is sent.
INSTANTIATE_TEST_SUITE_P(OfKind, KilledPeer,
                         testing::Values(OperationKind::kAllReduce, OperationKind::kBroadcast,
                                         OperationKind::kAllGather, OperationKind::kReduceScatter,
                                         OperationKind::kAllToAll, OperationKind::kScatter,
                                         OperationKind::kBarrier),
                         [](const auto& kind) {
                           return collective::operation_kind_name(kind.param);
                         });

// Half of what a rank has sent arrives eight seconds later, when it is dead.
TEST(Failures, network_that_holds_packets_back_does_not_keep_a_dead_peer_alive) {
  ClusterOptions options = cluster_of(3);
  options.death_timeout = Duration::seconds(3);
  options.link.reorder = 0.5;
  options.link.reorder_delay = Duration::seconds(8);
  Fleet fleet(options);
  for (int i = 0; i < 10; ++i) fleet.expect_works(call_of(OperationKind::kAllToAll, 1'000));
  fleet.cluster.kill(2);
  const uint64_t opened_before = fleet.cluster.traffic().packets_opened;
  const Operations operations = fleet.start_all(call_of(OperationKind::kBarrier, 0));
  EXPECT_TRUE(fleet.run_until_done(operations, Duration::millis(3'100)));
  for (const auto& operation : operations) {
    EXPECT_TRUE(failed_with(*operation, ErrorCode::kPeerLost, "rank 2 (10.0.0.2:4000) is lost"));
  }
  fleet.cluster.run_for(Duration::seconds(8));
  EXPECT_GT(fleet.cluster.traffic().packets_opened, opened_before);
}

TEST(Failures, peer_killed_in_the_middle_of_a_transfer__100_moments) {
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    ClusterOptions options = cluster_of(2 + static_cast<uint32_t>(seed % 3), seed);
    options.death_timeout = Duration::seconds(2);
    if (seed % 2 == 0) options.link = stormy_link();
    Fleet fleet(options);
    const auto victim = static_cast<uint32_t>(seed % options.ranks);
    Operations operations = fleet.start_all(all_reduce_of(100'000));
    operations.erase(operations.begin() + victim);
    fleet.cluster.run_for(Duration::micros(static_cast<int64_t>(2'500 + 100 * seed)));
    fleet.cluster.kill(victim);
    ASSERT_TRUE(fleet.run_until_done(operations, Duration::seconds(63))) << "seed " << seed;
    for (const auto& operation : operations) {
      if (!operation->error) continue;  // it was fast enough
      EXPECT_TRUE(
          failed_with(*operation, ErrorCode::kPeerLost, "rank " + std::to_string(victim) + " ("))
          << "seed " << seed;
    }
  }
}

TEST(Failures, killed_peer_that_nobody_needs_does_not_disturb_others) {
  ClusterOptions options = cluster_of(4);
  options.death_timeout = Duration::seconds(2);
  Fleet fleet(options);
  fleet.expect_works(call_of(OperationKind::kAllToAll, 100));
  const auto group = fleet.cluster.make_group("pair", {0, 1});
  fleet.cluster.kill(3);
  fleet.cluster.run_for(Duration::seconds(5));
  CallRun run(all_reduce_of(1'000), 2);
  Operations operations;
  for (uint32_t rank = 0; rank < 2; ++rank) {
    operations.push_back(run.make_operation(group[rank], base::Instant::never()));
    fleet.cluster.start(rank, operations.back());
  }
  ASSERT_TRUE(fleet.run_until_done(operations, Duration::seconds(1)));
  fleet.expect_right(run, operations);
}

TEST(Failures, rank_that_never_joins_is_named_after_the_join_timeout) {
  ClusterOptions options = cluster_of(3);
  options.absent = {1};
  options.join_timeout = Duration::seconds(5);
  Fleet fleet(options);
  const Operations operations = fleet.start_all(all_reduce_of(100));
  EXPECT_FALSE(fleet.run_until_done(operations, Duration::millis(4'900)));
  EXPECT_TRUE(fleet.run_until_done(operations, Duration::millis(200)));
  for (const auto& operation : operations) {
    EXPECT_TRUE(failed_with(*operation, ErrorCode::kPeerLost,
                            "rank 1 did not join: it has published no roster entry for 5.0 s"));
  }
}

TEST(Failures, rank_that_joins_late_is_waited_for) {
  ClusterOptions options = cluster_of(3);
  options.absent = {1};
  Fleet fleet(options);
  CallRun& run = fleet.make_run(all_reduce_of(50'000));
  Operations operations = fleet.start_all(run);
  fleet.cluster.run_for(Duration::seconds(7));
  fleet.cluster.join(1);
  operations.push_back(fleet.start(run, 1));
  ASSERT_TRUE(fleet.run_until_done(operations, Duration::seconds(2)));
  fleet.expect_right(run, operations);
}

TEST(Failures, rank_with_another_job_key_is_never_confirmed_and_the_error_says_why) {
  ClusterOptions options = cluster_of(3);
  options.impostors = {2};
  options.join_timeout = Duration::seconds(5);
  Fleet fleet(options);
  const Operations operations = fleet.start_all(call_of(OperationKind::kAllToAll, 100));
  EXPECT_TRUE(fleet.run_until_done(operations, Duration::seconds(6)));
  for (const auto& operation : operations) {
    const bool is_impostor = operation->group().rank == 2;
    EXPECT_TRUE(failed_with(*operation, ErrorCode::kPeerLost, is_impostor ? "rank " : "rank 2 ("));
    EXPECT_TRUE(failed_with(*operation, ErrorCode::kPeerLost, "started with another job key"));
  }
  EXPECT_GT(fleet.cluster.drops().auth_failed, 0u);
  EXPECT_EQ(fleet.cluster.engine(2).endpoint().traffic().packets_opened, 0u);
}

TEST(Failures, network_that_drops_everything_is_named_as_a_firewall) {
  ClusterOptions options = cluster_of(2);
  options.join_timeout = Duration::seconds(5);
  options.link.is_blackhole = true;
  Fleet fleet(options);
  const Operations operations = fleet.start_all(all_reduce_of(100));
  EXPECT_TRUE(fleet.run_until_done(operations, Duration::seconds(6)));
  EXPECT_TRUE(failed_with(*operations[0], ErrorCode::kPeerLost, "answered on none of 4 paths"));
  EXPECT_TRUE(failed_with(*operations[0], ErrorCode::kPeerLost, "firewall"));
}

TEST(Failures, operation_that_one_rank_never_calls_times_out_and_names_it) {
  Fleet fleet(cluster_of(3));
  fleet.expect_works(all_reduce_of(10));
  CallRun& run = fleet.make_run(all_reduce_of(10));
  Operations operations;
  for (const uint32_t rank : {0u, 2u}) {
    operations.push_back(
        run.make_operation(fleet.cluster.world(rank), fleet.cluster.now() + Duration::seconds(20)));
    fleet.cluster.start(rank, operations.back());
  }
  ASSERT_TRUE(fleet.run_until_done(operations, Duration::seconds(21)));
  EXPECT_TRUE(failed_with(*operations[0], ErrorCode::kTimeout, "Timed out after 20.0 s"));
  EXPECT_TRUE(failed_with(*operations[0], ErrorCode::kTimeout,
                          "rank 1 (10.0.0.1:4000) which has not started this operation"));
}

// In a ring each rank has links with its neighbours only.
TEST(Failures, abort_reaches_a_rank_without_a_link_to_the_one_that_gave_up) {
  Fleet fleet(cluster_of(4));
  const Operations operations = fleet.start_all(all_reduce_of(1'000'000));
  fleet.cluster.run_for(Duration::millis(2));
  for (const auto& [peer, paths] : fleet.cluster.engine(3).endpoint().paths()) {
    ASSERT_NE(peer, base::Rank{1});
  }
  const base::Error reason{ErrorCode::kAborted, "the user pressed stop"};
  fleet.cluster.engine(1).abort_group(*fleet.cluster.world(1), reason, fleet.cluster.now());
  fleet.cluster.touch(1);
  ASSERT_TRUE(fleet.run_until_done(operations, Duration::millis(100)));
  EXPECT_TRUE(failed_with(*operations[3], ErrorCode::kAborted, "gave up process group"));
  EXPECT_TRUE(failed_with(*operations[3], ErrorCode::kAborted, "the user pressed stop"));
}

// As processes do that end with the error: what one of them knew must come before its goodbye.
TEST(Failures, ranks_that_fail_and_leave_at_once_still_tell_who_died__60_moments) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    ClusterOptions options = cluster_of(3 + static_cast<uint32_t>(seed % 3), seed);
    options.death_timeout = Duration::seconds(2);
    options.heartbeat = Duration::millis(300);
    options.link.latency = Duration::millis(5);
    options.link.rate_bits_per_second = 20'000'000;  // the rank dies in the midst of it
    options.link.loss = seed % 2 == 0 ? 0.3 : 0.0;
    Fleet fleet(options);
    const auto victim = static_cast<uint32_t>(seed % options.ranks);
    Operations operations = fleet.start_all(all_reduce_of(400'000));
    operations.erase(operations.begin() + victim);
    fleet.cluster.run_for(Duration::millis(20 + static_cast<int64_t>(seed)));
    fleet.cluster.kill(victim);
    const auto leave = [&] {
      for (const auto& operation : operations) {
        const uint32_t rank = operation->group().rank;
        if (!operation->is_done || !fleet.cluster.is_alive(rank)) continue;
        if (fleet.cluster.engine(rank).endpoint().is_drained()) fleet.cluster.leave(rank);
      }
      return std::ranges::none_of(operations, [](const auto& op) { return !op->is_done; });
    };
    ASSERT_TRUE(fleet.cluster.run_until(leave, fleet.cluster.now() + Duration::seconds(10)));
    for (const auto& operation : operations) {
      EXPECT_TRUE(
          failed_with(*operation, ErrorCode::kPeerLost, "rank " + std::to_string(victim) + " ("));
      EXPECT_TRUE(failed_with(*operation, ErrorCode::kPeerLost, "is lost"));
    }
  }
}

TEST(Failures, abort_unblocks_every_member) {
  Fleet fleet(cluster_of(4));
  fleet.expect_works(all_reduce_of(10));
  CallRun& run = fleet.make_run(all_reduce_of(100'000));
  Operations operations;
  for (const uint32_t rank : {0u, 1u, 2u}) operations.push_back(fleet.start(run, rank));
  fleet.cluster.run_for(Duration::millis(100));
  const base::Error reason{ErrorCode::kAborted, "the user pressed stop"};
  fleet.cluster.engine(0).abort_group(*fleet.cluster.world(0), reason, fleet.cluster.now());
  fleet.cluster.touch(0);
  EXPECT_TRUE(fleet.run_until_done(operations, Duration::millis(100)));
  EXPECT_TRUE(failed_with(*operations[0], ErrorCode::kAborted, "the user pressed stop"));
  EXPECT_TRUE(failed_with(*operations[1], ErrorCode::kAborted, "rank 0 gave up process group"));
  EXPECT_TRUE(failed_with(*operations[2], ErrorCode::kAborted, "the user pressed stop"));
  // A group that is gone on one rank leaves other groups alone.
  const auto group = fleet.cluster.make_group("next", {0, 1, 2, 3});
  CallRun next(all_reduce_of(100'000), 4);
  Operations again;
  for (uint32_t rank = 0; rank < 4; ++rank) {
    again.push_back(next.make_operation(group[rank], base::Instant::never()));
    fleet.cluster.start(rank, again.back());
  }
  ASSERT_TRUE(fleet.run_until_done(again, Duration::seconds(2)));
  fleet.expect_right(next, again);
}

}  // namespace
}  // namespace securefabric::sim
