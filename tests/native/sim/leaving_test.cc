// Ranks that leave in good order: what they sent still counts, what they will not do is an error.
#include <gtest/gtest.h>

#include "sim/fleet.h"

namespace securefabric::sim {
namespace {

using base::Duration;
using base::ErrorCode;
using collective::OperationKind;

// Leaves as a driver does: as soon as everything it sent was acknowledged.
void leave_when_drained(Fleet& fleet, uint32_t rank) {
  if (fleet.cluster.engine(rank).endpoint().is_drained()) return fleet.cluster.leave(rank);
  fleet.cluster.after(Duration::millis(1), [&fleet, rank] { leave_when_drained(fleet, rank); });
}

// Every rank starts a little late, and leaves as soon as its part is done.
void expect_right_though_everybody_leaves(const Call& call, const ClusterOptions& options) {
  Fleet fleet(options);
  CallRun& run = fleet.make_run(call);
  Operations operations(options.ranks);
  base::Random random(options.seed);
  uint32_t done = 0;
  const auto start = [&](uint32_t rank) {
    operations[rank] = run.make_operation(fleet.cluster.world(rank), base::Instant::never());
    operations[rank]->on_done = [&, rank] {
      ++done;
      fleet.cluster.after(Duration::micros(1), [&, rank] { leave_when_drained(fleet, rank); });
    };
    fleet.cluster.start(rank, operations[rank]);
  };
  for (uint32_t rank = 0; rank < options.ranks; ++rank) {
    const auto late = Duration::millis(static_cast<int64_t>(random.below(50)));
    fleet.cluster.after(late, [&start, rank] { start(rank); });
  }
  ASSERT_TRUE(fleet.cluster.run_until([&] { return done == options.ranks; },
                                      fleet.cluster.now() + Duration::seconds(30)));
  fleet.expect_right(run, operations);
}

TEST(Leaving, ranks_leave_as_soon_as_they_are_done__others_still_get_their_results) {
  uint64_t seed = 0;
  for (const OperationKind kind :
       {OperationKind::kAllReduce, OperationKind::kBroadcast, OperationKind::kReduce,
        OperationKind::kAllGather, OperationKind::kReduceScatter, OperationKind::kAllToAll,
        OperationKind::kGather, OperationKind::kScatter, OperationKind::kBarrier}) {
    for (const uint64_t count : {10, 3'000, 100'000}) {
      for (int round = 0; round < 4; ++round) {
        ++seed;
        ClusterOptions options = cluster_of(2 + static_cast<uint32_t>(seed % 4), seed);
        if (round > 0) {
          // Not more: a goodbye is not acknowledged, and its few copies may all be lost.
          options.link = stormy_link();
          options.link.loss = 0.05;
        }
        expect_right_though_everybody_leaves(call_of(kind, count), options);
        ASSERT_FALSE(HasFailure()) << describe(call_of(kind, count)) << ", seed " << seed;
      }
    }
  }
}

TEST(Leaving, operation_that_needs_the_departed_rank_fails_by_name) {
  Fleet fleet(cluster_of(3));
  fleet.expect_works(call_of(OperationKind::kAllToAll, 10));
  const Operations before = fleet.start_all(all_reduce_of(1'000'000));
  EXPECT_TRUE(fleet.run_until_done(before, Duration::seconds(5)));
  EXPECT_TRUE(fleet.run_until_drained(Duration::seconds(5)));
  CallRun& run = fleet.make_run(all_reduce_of(1'000'000));
  const auto running = fleet.start(run, 0);
  fleet.cluster.leave(1);
  ASSERT_TRUE(fleet.run_until_done({running}, Duration::seconds(1)));
  EXPECT_TRUE(failed_with(*running, ErrorCode::kPeerLost, "rank 1 (10.0.0.1:4000) has left"));
  EXPECT_TRUE(failed_with(*running, ErrorCode::kPeerLost, "; its own log says why"));
  const auto later = fleet.start(fleet.make_run(call_of(OperationKind::kBarrier, 0)), 2);
  ASSERT_TRUE(fleet.run_until_done({later}, Duration::seconds(1)));
  EXPECT_TRUE(failed_with(*later, ErrorCode::kPeerLost, "rank 1"));
}

// A rank's program raises because one group has failed, and leaves; another rank waits for it in
// another group, which nobody has given up.
TEST(Leaving, whoever_waits_in_another_group_hears_what_ended_the_first) {
  Fleet fleet(cluster_of(3));
  const auto pair = fleet.cluster.make_group("pair", {1, 2});
  const auto other = fleet.cluster.make_group("other pair", {1, 2});
  fleet.expect_works(call_of(OperationKind::kAllToAll, 10));
  std::vector<uint8_t> never(10);
  Operations waiting;
  for (const auto& group : {pair[1], other[1]}) {
    waiting.push_back(make_receive(group, 0, 3, never));
    fleet.cluster.start(2, waiting.back());
  }
  const base::Error reason{ErrorCode::kMismatch, "ranks disagree about operation 7"};
  fleet.cluster.engine(1).abort_group(*fleet.cluster.world(1), reason, fleet.cluster.now());
  ASSERT_TRUE(fleet.run_until_drained(Duration::seconds(1)));
  fleet.cluster.leave(1);
  ASSERT_TRUE(fleet.run_until_done(waiting, Duration::seconds(1)));
  for (const auto& operation : waiting) {
    EXPECT_TRUE(failed_with(*operation, ErrorCode::kPeerLost, "rank 1 (10.0.0.1:4000) has left"));
    EXPECT_TRUE(failed_with(*operation, ErrorCode::kPeerLost,
                            "; before, process group 'world' had ended: rank 1 gave up process "
                            "group 'world': ranks disagree about operation 7"));
  }
  const auto later = make_receive(pair[1], 0, 3, never);
  fleet.cluster.start(2, later);
  ASSERT_TRUE(fleet.run_until_done({later}, Duration::seconds(1)));
  EXPECT_TRUE(failed_with(*later, ErrorCode::kPeerLost, "ranks disagree about operation 7"));
}

TEST(Leaving, message_of_a_departed_rank_is_still_received) {
  Fleet fleet(cluster_of(2));
  std::vector<uint8_t> sent(1'000, 42);
  std::vector<uint8_t> received(1'000);
  std::vector<uint8_t> never(1'000);
  fleet.cluster.start(0, make_send(fleet.cluster.world(0), 1, 3, sent));
  ASSERT_TRUE(fleet.run_until_drained(Duration::seconds(1)));
  fleet.cluster.leave(0);
  fleet.cluster.run_for(Duration::seconds(1));
  const auto receive = make_receive(fleet.cluster.world(1), 0, 3, received);
  fleet.cluster.start(1, receive);
  ASSERT_TRUE(fleet.run_until_done({receive}, Duration::seconds(1)));
  ASSERT_FALSE(receive->error) << receive->error->message;
  EXPECT_EQ(received, sent);
  const auto second = make_receive(fleet.cluster.world(1), 0, 3, never);
  fleet.cluster.start(1, second);
  ASSERT_TRUE(fleet.run_until_done({second}, Duration::seconds(1)));
  EXPECT_TRUE(failed_with(*second, ErrorCode::kPeerLost, "rank 0 (10.0.0.0:4000) has left"));
}

TEST(Leaving, goodbye_that_is_lost_ends_in_the_death_timeout) {
  ClusterOptions options = cluster_of(2);
  options.death_timeout = Duration::seconds(2);
  Fleet fleet(options);
  fleet.expect_works(all_reduce_of(10));
  ASSERT_TRUE(fleet.run_until_drained(Duration::seconds(1)));
  fleet.cluster.set_blackhole_everywhere(true);
  fleet.cluster.leave(0);
  const auto receive = fleet.start(fleet.make_run(call_of(OperationKind::kBarrier, 0)), 1);
  ASSERT_TRUE(fleet.run_until_done({receive}, Duration::seconds(3)));
  EXPECT_TRUE(failed_with(*receive, ErrorCode::kPeerLost, "rank 0 (10.0.0.0:4000) is lost"));
}

}  // namespace
}  // namespace securefabric::sim
