// A hundred thousand operations outstanding: nobody is lost, blamed or blocked, and nothing that a
// rank holds for another grows without bound.
#include <gtest/gtest.h>

#include <algorithm>

#include "sim/fleet.h"

namespace securefabric::sim {
namespace {

using base::Duration;
using collective::OperationKind;

constexpr size_t kMany = 100'000;
constexpr Duration kLimit = Duration::seconds(300);

class Outstanding : public testing::Test {
 protected:
  Outstanding() : fleet_(cluster_of(2)) {}

  // Looks at each operation once, however often it is asked.
  bool run_until_done(const Operations& operations) {
    size_t done = 0;
    return fleet_.cluster.run_until(
        [&] {
          while (done < operations.size() && operations[done]->is_done) ++done;
          return done == operations.size();
        },
        fleet_.cluster.now() + kLimit);
  }
  static void expect_no_error(const Operations& operations) {
    const auto failed = std::find_if(operations.begin(), operations.end(),
                                     [](const auto& operation) { return operation->error; });
    if (failed != operations.end()) ADD_FAILURE() << (*failed)->error->message;
  }
  // The message with this number carries it.
  Operations send_many(size_t bytes) {
    Operations sends;
    for (uint32_t i = 0; i < kMany; ++i) {
      std::vector<uint8_t>& buffer = sent_.emplace_back(bytes);
      if (bytes >= 4) std::copy_n(reinterpret_cast<const uint8_t*>(&i), 4, buffer.begin());
      sends.push_back(make_send(fleet_.cluster.world(0), 1, kTag, buffer));
      fleet_.cluster.start(0, sends.back());
    }
    return sends;
  }
  Operations receive_many(size_t bytes) {
    Operations receives;
    for (size_t i = 0; i < kMany; ++i) {
      std::vector<uint8_t>& buffer = received_.emplace_back(bytes);
      receives.push_back(make_receive(fleet_.cluster.world(1), 0, kTag, buffer));
      fleet_.cluster.start(1, receives.back());
    }
    return receives;
  }
  static constexpr uint32_t kTag = 5;

  Fleet fleet_;
  std::deque<std::vector<uint8_t>> sent_;
  std::deque<std::vector<uint8_t>> received_;
};

TEST_F(Outstanding, sends_that_nobody_receives_yet_block_no_collective) {
  const Operations sends = send_many(4);
  fleet_.cluster.run_for(Duration::seconds(20));
  const auto pending =
      std::count_if(sends.begin(), sends.end(), [](const auto& send) { return !send->is_done; });
  EXPECT_GT(pending, 0) << "beyond the credit they wait at the sender";
  fleet_.expect_works(call_of(OperationKind::kBarrier, 0));
  fleet_.expect_works(all_reduce_of(1'000));
  fleet_.expect_works(all_reduce_of(100'000));
  const Operations receives = receive_many(4);
  ASSERT_TRUE(run_until_done(receives));
  ASSERT_TRUE(run_until_done(sends));
  expect_no_error(sends);
  expect_no_error(receives);
  EXPECT_EQ(sent_, received_) << "in order";
}

TEST_F(Outstanding, empty_sends) {
  const Operations sends = send_many(0);
  fleet_.cluster.run_for(Duration::seconds(2));
  const Operations receives = receive_many(0);
  ASSERT_TRUE(run_until_done(receives));
  ASSERT_TRUE(run_until_done(sends));
  expect_no_error(receives);
}

TEST_F(Outstanding, receives_that_nobody_has_sent_for_yet) {
  const Operations receives = receive_many(4);
  fleet_.cluster.run_for(Duration::seconds(20));
  fleet_.expect_works(all_reduce_of(1'000));
  const Operations sends = send_many(4);
  ASSERT_TRUE(run_until_done(receives));
  ASSERT_TRUE(run_until_done(sends));
  expect_no_error(receives);
  EXPECT_EQ(sent_, received_);
}

// Rank 0 runs ahead with every operation while rank 1 is late.
void run_ahead(const Call& call, size_t count) {
  Fleet fleet(cluster_of(2));
  std::vector<CallRun*> runs;
  Operations operations;
  const auto start = [&](uint32_t rank) {
    for (size_t i = 0; i < count; ++i) {
      if (rank == 0) runs.push_back(&fleet.make_run(call));
      operations.push_back(
          runs[i]->make_operation(fleet.cluster.world(rank), base::Instant::never()));
      fleet.cluster.start(rank, operations.back());
    }
  };
  start(0);
  fleet.cluster.run_for(Duration::seconds(40));
  const uint64_t packets = fleet.cluster.traffic().packets_sealed;
  EXPECT_LT(packets, 20'000u) << "a rank that waits asks about one operation, not about all";
  start(1);
  size_t done = 0;
  ASSERT_TRUE(fleet.cluster.run_until(
      [&] {
        while (done < operations.size() && operations[done]->is_done) ++done;
        return done == operations.size();
      },
      fleet.cluster.now() + kLimit));
  fleet.expect_right(*runs.front(), {operations.front(), operations[count]});
  fleet.expect_right(*runs.back(), {operations[count - 1], operations.back()});
  for (const auto& operation : operations) ASSERT_FALSE(operation->error);
}

TEST(RunAhead, small_all_reduces) {
  run_ahead(all_reduce_of(1), kMany);
}
TEST(RunAhead, small_broadcasts) {
  run_ahead(call_of(OperationKind::kBroadcast, 1), kMany);
}
TEST(RunAhead, barriers) {
  run_ahead(call_of(OperationKind::kBarrier, 0), kMany);
}
TEST(RunAhead, small_gathers_to_the_late_rank) {
  run_ahead(call_of(OperationKind::kGather, 1, /*root=*/1), kMany);
}

// One failure ends them all, in one walk.
TEST(RunAhead, a_lost_peer_ends_all) {
  Fleet fleet(cluster_of(2));
  Operations operations;
  std::vector<uint8_t> buffer(4);
  for (size_t i = 0; i < kMany; ++i) {
    CallRun& run = fleet.make_run(all_reduce_of(1));
    operations.push_back(run.make_operation(fleet.cluster.world(0), base::Instant::never()));
    operations.push_back(make_receive(fleet.cluster.world(0), 1, 9, buffer));
  }
  for (const auto& operation : operations) fleet.cluster.start(0, operation);
  fleet.cluster.run_for(Duration::millis(100));
  fleet.cluster.kill(1);
  ASSERT_TRUE(fleet.cluster.run_until([&] { return operations.back()->is_done; },
                                      fleet.cluster.now() + kLimit));
  for (const auto& operation : operations) {
    ASSERT_TRUE(failed_with(*operation, base::ErrorCode::kPeerLost, "rank 1"));
  }
}

}  // namespace
}  // namespace securefabric::sim
