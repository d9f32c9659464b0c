// Several engines of one rank: they work, fail and end as one.
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <set>
#include <string>

#include "net/fabric_job.h"

namespace securefabric::net {
namespace {

using base::Error;
using base::ErrorCode;
using base::Instant;
using base::Rank;

TEST(FabricEngines, have_nothing_in_common) {
  FabricJob job(2, 3);
  job.make_all();
  std::set<std::array<uint8_t, 32>> keys;
  std::set<uint32_t> spis;
  std::set<std::string> addresses;
  for (uint32_t rank = 0; rank < 2; ++rank) {
    ASSERT_EQ(job.fabric(rank)->engines(), 3u);
    for (const EngineEntry& engine : job.fabric(rank)->engine_entries()) {
      keys.insert(engine.public_key);
      spis.insert(engine.spi_base.value);
      for (const auto& address : engine.addresses) addresses.insert(address.to_text());
    }
  }
  EXPECT_EQ(keys.size(), 6u);
  EXPECT_EQ(spis.size(), 6u);
  EXPECT_EQ(addresses.size(), 6 * FabricConfig().sockets_per_interface);
}

TEST(FabricEngines, each_works_by_itself_after_one_look_up) {
  FabricJob job(2, 3);
  job.make_all();
  for (size_t engine = 3; engine-- > 0;) job.expect_works(20'000, engine);
  EXPECT_LE(job.board.look_ups("world"), 4) << "one for each rank, or two if both ask at once";
  const FabricStats stats = job.fabric(0)->stats();
  EXPECT_EQ(stats.peers, 1u);
  EXPECT_GE(stats.paths_used, 3u);
  EXPECT_GE(stats.traffic.message_bytes_received, 3u * 20'000 * sizeof(int64_t));
  std::set<uint32_t> engines;
  for (const FabricPath& path : job.fabric(0)->paths()) {
    EXPECT_EQ(path.peer, Rank{1});
    engines.insert(path.engine);
  }
  EXPECT_EQ(engines, (std::set<uint32_t>{0, 1, 2}));
}

// Nothing else would ever end what waits in the engines that have not failed.
TEST(FabricEngines, a_group_that_breaks_in_one_breaks_in_all_on_every_rank) {
  for (size_t origin = 0; origin < 3; ++origin) {
    FabricJob job(2, 3);
    job.make_all();
    for (size_t engine = 0; engine < 3; ++engine) job.expect_works(1, engine);
    std::vector<std::shared_ptr<Call>> calls;
    for (size_t engine = 0; engine < 3; ++engine) {
      calls.push_back(job.start(0, {.kind = OperationKind::kReceive, .peer = 1}, engine));
      calls.push_back(job.start(1, {.kind = OperationKind::kReceive, .peer = 0}, engine));
    }
    EXPECT_TRUE(job.fabric(0)->driver(origin).run([&](collective::Engine& engine, Instant at) {
      engine.abort_group(*job.group(0, origin), Error{ErrorCode::kAborted, "given up"}, at);
    }));
    for (const auto& call : calls) {
      EXPECT_TRUE(eventually([&] { return call->is_done(); }));
      EXPECT_TRUE(failed_with(*call->operation, ErrorCode::kAborted, "given up"));
    }
  }
}

// The Work of a call that failed in one engine is seen before the next call is made.
TEST(FabricEngines, the_next_operation_of_any_engine_fails_at_once) {
  FabricJob job(2, 2);
  job.make_all();
  job.expect_works(1, 1);
  const auto failed = job.start(0, {.kind = OperationKind::kReceive, .peer = 1}, 1);
  EXPECT_TRUE(job.fabric(0)->driver(1).run([&](collective::Engine& engine, Instant at) {
    engine.abort_group(*job.group(0, 1), Error{ErrorCode::kAborted, "given up"}, at);
  }));
  EXPECT_TRUE(job.wait(0, *failed));
  const auto next = job.start(0);
  EXPECT_TRUE(job.wait(0, *next));
  EXPECT_TRUE(failed_with(*next->operation, ErrorCode::kAborted, "given up"));
}

// Its heartbeats have ended, but not those of the other engine: nobody would notice.
TEST(FabricEngines, one_that_cannot_send_lets_the_others_tell_the_members) {
  FabricJob job(2, 2);
  job.make_all();
  for (size_t engine = 0; engine < 2; ++engine) job.expect_works(1, engine);
  const auto waiting = job.start(1, {.kind = OperationKind::kReceive, .peer = 0}, 0);
  EXPECT_TRUE(job.fabric(0)->driver(1).run([](collective::Engine& engine, Instant at) {
    engine.abort_all(Error{ErrorCode::kSystem, "no socket"}, /*is_told_by_others=*/true, at);
  }));
  EXPECT_TRUE(eventually([&] { return waiting->is_done(); }));
  EXPECT_TRUE(failed_with(*waiting->operation, ErrorCode::kSystem, "no socket"));
}

// Each would wait for the other's end.
TEST(FabricEngines, callbacks_of_two_of_them_shut_down_at_once) {
  for (int round = 0; round < 10; ++round) {
    FabricJob job(1, 2);
    job.make_all();
    std::atomic<int> arrived = 0;
    std::vector<std::shared_ptr<Call>> calls;
    for (size_t engine = 0; engine < 2; ++engine) {
      calls.push_back(make_call(job.group(0, engine)));
      calls.back()->then = [&] {
        ++arrived;
        EXPECT_TRUE(eventually([&] { return arrived == 2; }));
        job.fabric(0)->shutdown();
      };
      EXPECT_TRUE(job.fabric(0)->driver(engine).submit(calls.back()->operation));
    }
    for (const auto& call : calls) EXPECT_TRUE(eventually([&] { return call->is_done(); }));
  }
}

TEST(FabricEngines, other_groups_go_on) {
  FabricJob job(2, 2);
  job.make_all();
  const std::vector<Fabric::Groups> others = {job.add_group(0, "other"), job.add_group(1, "other")};
  job.fabric(0)->abort_group(others[0], Error{ErrorCode::kAborted, "given up"});
  for (size_t engine = 0; engine < 2; ++engine) job.expect_works(1'000, engine);
  job.fabric(0)->remove_group(others[0], std::nullopt);
  for (size_t engine = 0; engine < 2; ++engine) job.expect_works(1'000, engine);
}

TEST(FabricEngines, shut_down_when_all_have_sent_what_they_had) {
  FabricJob job(2, 2);
  job.make_all();
  std::vector<std::shared_ptr<Call>> sends;
  std::vector<std::shared_ptr<Call>> receives;
  for (size_t engine = 0; engine < 2; ++engine) {
    sends.push_back(
        job.start(0, {.kind = OperationKind::kSend, .count = 2'000, .peer = 1}, engine));
  }
  for (const auto& send : sends) EXPECT_TRUE(job.wait(0, *send));
  job.fabric(0)->shutdown();
  for (size_t engine = 0; engine < 2; ++engine) {
    const CallOptions options{.kind = OperationKind::kReceive, .count = 2'000, .peer = 0};
    receives.push_back(job.start(1, options, engine));
    EXPECT_TRUE(job.wait(1, *receives.back()));
    EXPECT_FALSE(receives.back()->operation->error);
  }
  EXPECT_FALSE(job.fabric(0)->driver(1).submit(make_call(job.group(0, 1))->operation));
}

}  // namespace
}  // namespace securefabric::net
