#include "net/fabric.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <condition_variable>
#include <map>
#include <set>
#include <stdexcept>

#include "net/fabric_job.h"
#include "wire/header.h"

namespace securefabric::net {
namespace {

using base::Duration;
using base::Error;
using base::ErrorCode;
using base::Rank;
using base::Result;

// --- make
// -----------------------------------------------------------------------------------------

TEST(Fabric, make__knows_what_its_entry_says) {
  FabricJob job(1);
  job.make(0);
  const Fabric& fabric = *job.fabric(0);
  ASSERT_EQ(fabric.engine_entries().size(), 1u);
  const EngineEntry& engine = fabric.engine_entries().front();
  EXPECT_EQ(engine.addresses.size(), FabricConfig().sockets_per_interface);
  EXPECT_TRUE(engine.addresses.front().is_loopback());
  EXPECT_NE(engine.public_key, (std::array<uint8_t, 32>{}));
  EXPECT_NE(fabric.boot_id(), base::BootId{});
  EXPECT_EQ(fabric.datagram_bytes_max() % transport::kFragmentAlignment, 0u);
  EXPECT_GE(fabric.datagram_bytes_max(), transport::kDatagramBytesMin);
}

// Over loopback, and only if the socket buffers have room for some of every peer's.
TEST(Fabric, make__takes_the_largest_datagrams_from_few_peers) {
  const auto datagram_bytes_of = [](uint32_t world_size) {
    const auto fabric = Fabric::make(config_of(0, world_size), kSuite, make_job_secret(), {});
    return fabric ? fabric.value()->datagram_bytes_max() : 0;
  };
  EXPECT_EQ(datagram_bytes_of(2), transport::kDatagramBytesMax);
  EXPECT_EQ(datagram_bytes_of(1'000), transport::kDatagramBytesJumbo);
}

TEST(Fabric, make__refuses_addresses_that_cannot_be_bound) {
  FabricConfig config = config_of(0, 1);
  config.addresses = {"192.0.2.1"};  // TEST-NET-1
  const auto foreign = Fabric::make(config, kSuite, make_job_secret(), {});
  ASSERT_FALSE(foreign);
  EXPECT_EQ(foreign.error().code, ErrorCode::kConfig);
  EXPECT_NE(foreign.error().message.find("192.0.2.1"), std::string::npos);
  config.addresses = {"nowhere"};
  EXPECT_FALSE(Fabric::make(config, kSuite, make_job_secret(), {}));
  config.addresses = {};
  config.interfaces = "=no_such_interface";
  EXPECT_FALSE(Fabric::make(config, kSuite, make_job_secret(), {}));
}

TEST(Fabric, make__takes_free_ports_of_the_range_until_there_is_none) {
  // Where it begins does not matter: a port that somebody else has is passed over.
  constexpr uint16_t kFirst = 29'000;
  constexpr size_t kPorts = 7;
  FabricConfig config = config_of(0, 1);
  config.port_first = kFirst;
  config.port_last = kFirst + kPorts - 1;
  std::vector<std::shared_ptr<Fabric>> fabrics;
  std::set<uint16_t> ports;
  for (size_t i = 0; i <= kPorts; ++i) {
    auto fabric = Fabric::make(config, kSuite, make_job_secret(), {});
    if (!fabric) {
      EXPECT_EQ(fabric.error().code, ErrorCode::kConfig);
      EXPECT_NE(fabric.error().message.find("SECUREFABRIC_PORTS"), std::string::npos);
      EXPECT_GE(fabrics.size(), 1u);
      return;
    }
    for (const base::SocketAddress& address : fabric.value()->engine_entries().front().addresses) {
      EXPECT_GE(address.port(), config.port_first);
      EXPECT_LE(address.port(), config.port_last);
      EXPECT_TRUE(ports.insert(address.port()).second);
    }
    fabrics.push_back(std::move(fabric).value());
  }
  FAIL() << "more sockets than ports";
}

TEST(Fabric, make__refuses_too_many_sockets) {
  FabricConfig config = config_of(0, 1);
  config.sockets_per_interface = transport::kSocketsMax + 1;
  const auto fabric = Fabric::make(config, kSuite, make_job_secret(), {});
  ASSERT_FALSE(fabric);
  EXPECT_NE(fabric.error().message.find("SECUREFABRIC_SOCKETS_PER_INTERFACE"), std::string::npos);
}

// --- Finding peers
// --------------------------------------------------------------------------------

TEST(Fabric, resolve__finds_the_peers_that_operations_need) {
  FabricJob job(3);
  job.make_all();
  EXPECT_EQ(job.board.look_ups("world"), 0) << "links are lazy";
  job.expect_works();
  job.expect_works(50'000);
}

TEST(Fabric, resolve__at_once_with_eager_connect) {
  FabricJob job(3);
  job.make_all(/*eager_connect=*/true);
  for (uint32_t rank = 0; rank < 3; ++rank) {
    EXPECT_TRUE(eventually([&] { return job.fabric(rank)->stats().paths_active > 0; }));
  }
  job.expect_works();
}

// Rank 0 has no reason of its own to look for rank 1, which sends it something.
TEST(Fabric, resolve__a_peer_that_turns_up_by_itself) {
  FabricJob job(2);
  job.make_all();
  const auto send = job.start(1, {.kind = OperationKind::kSend, .count = 5, .peer = 0});
  EXPECT_TRUE(job.wait(1, *send));
  job.fabric(1)->driver().drain(kPatience);
  EXPECT_EQ(job.fabric(0)->stats().peers, 1u);
  const auto receive = job.start(0, {.kind = OperationKind::kReceive, .count = 5, .peer = 1});
  EXPECT_TRUE(job.wait(0, *receive));
  EXPECT_EQ(receive->values(), std::vector<int64_t>(5, 2));
}

// ... and it turns up before the group that both are in.
TEST(Fabric, resolve__a_peer_whose_group_comes_later) {
  FabricJob job(2);
  for (uint32_t rank = 0; rank < 2; ++rank) {
    job.make(rank);
    job.board.publish(*job.fabric(rank));
  }
  job.join(1);
  const auto second = job.start(1);
  EXPECT_TRUE(eventually([&] { return job.fabric(0)->stats().drops.unknown_spi > 0; }));
  job.join(0);
  const auto first = job.start(0);
  EXPECT_TRUE(job.wait(0, *first));
  EXPECT_TRUE(job.wait(1, *second));
}

// A stranger who knows every port and every SPI tries them all before any rank has a reason to
// talk. What the ranks drop is what he sent, to the last datagram: none of them said a word.
TEST(Fabric, resolve__junk_with_every_spi_at_every_port_is_answered_by_nobody) {
  constexpr uint32_t kRanks = 4;
  FabricJob job(kRanks, /*engines=*/2);
  std::mutex mutex;
  std::map<Rank, int> look_ups, needed;
  job.make(0, [&](const std::string& key, Rank rank, bool is_needed) {
    const std::lock_guard<std::mutex> lock(mutex);
    ++(is_needed ? needed : look_ups)[rank];
    return job.board.look_up(key, rank);
  });
  for (uint32_t rank = 1; rank < kRanks; ++rank) job.make(rank);
  for (uint32_t rank = 0; rank < kRanks - 1; ++rank) job.board.publish(*job.fabric(rank));
  for (uint32_t rank = 0; rank < kRanks - 1; ++rank) job.join(rank);  // the last one is late
  UdpSocket stranger = bind_or_die();
  std::map<uint32_t, uint64_t> sent;
  const auto dropped = [&](uint32_t rank) {
    const transport::DropCounters drops = job.fabric(rank)->stats().drops;
    return drops.unknown_spi + drops.auth_failed + drops.path_mismatch;
  };
  for (int round = 0; round < 10; ++round) {
    for (uint32_t victim = 0; victim < kRanks; ++victim) {
      for (const EngineEntry& engine : job.fabric(victim)->engine_entries()) {
        for (uint8_t socket = 0; socket < engine.addresses.size(); ++socket) {
          for (uint32_t rank = 0; rank < kRanks; ++rank) {
            std::vector<uint8_t> junk = random_bytes(64, rank);
            wire::encode_header(
                {base::PathId::from_sockets(0, socket), base::Spi{engine.spi_base.value + rank}, 5},
                junk);
            (void)stranger.send_burst(engine.addresses[socket], junk, junk.size());
            ++sent[victim];
          }
        }
      }
      EXPECT_TRUE(eventually([&] { return dropped(victim) >= sent[victim]; }));
    }
  }
  for (uint32_t rank = 0; rank < kRanks; ++rank) {
    const FabricStats stats = job.fabric(rank)->stats();
    EXPECT_EQ(dropped(rank), sent[rank]);
    EXPECT_EQ(stats.traffic.packets_sealed + stats.traffic.packets_opened, 0u);
    EXPECT_EQ(stats.peers, 0u);
    EXPECT_TRUE(job.fabric(rank)->paths().empty());
  }
  ReceiveBuffers buffers;
  EXPECT_TRUE(stranger.receive(buffers).value().empty());
  {
    const std::lock_guard<std::mutex> lock(mutex);
    EXPECT_EQ(look_ups[Rank{1}], 1);
    EXPECT_EQ(look_ups[Rank{2}], 1);
    EXPECT_TRUE(needed.empty());
  }
  job.board.publish(*job.fabric(kRanks - 1));
  job.join(kRanks - 1);
  for (const size_t engine : {0u, 1u}) job.expect_works(kLarge, engine);
}

TEST(Fabric, resolve__asks_less_and_less_often_for_a_rank_that_is_late) {
  FabricJob job(2);
  job.make(0);
  job.board.publish(*job.fabric(0));
  job.join(0);
  const auto first = job.start(0);
  EXPECT_FALSE(job.wait(0, *first, Duration::millis(400)));
  // At 0, 20, 60, 140 and 300 ms.
  EXPECT_GE(job.board.look_ups("world"), 2);
  EXPECT_LE(job.board.look_ups("world"), 7);
  job.make(1);
  job.board.publish(*job.fabric(1));
  job.join(1);
  const auto second = job.start(1);
  EXPECT_TRUE(job.wait(0, *first));
  EXPECT_TRUE(job.wait(1, *second));
  expect_sum(*first);
}

TEST(Fabric, resolve__an_entry_that_cannot_be_accepted_fails_the_operation) {
  FabricJob job(2);
  job.make(0, [](const std::string&, Rank, bool) -> Result<TestBoard::Entry> {
    return Error{ErrorCode::kAuth, "the entry is not signed"};
  });
  job.board.publish(*job.fabric(0));
  job.join(0);
  const auto call = job.start(0);
  EXPECT_TRUE(job.wait(0, *call));
  EXPECT_TRUE(failed_with(*call->operation, ErrorCode::kAuth, "the entry is not signed"));
}

TEST(Fabric, resolve__that_throws_fails_the_operation) {
  FabricJob job(2);
  job.make(0, [](const std::string&, Rank, bool) -> Result<TestBoard::Entry> {
    throw std::runtime_error("the store is gone");
  });
  job.board.publish(*job.fabric(0));
  job.join(0);
  const auto call = job.start(0);
  EXPECT_TRUE(job.wait(0, *call));
  EXPECT_TRUE(failed_with(*call->operation, ErrorCode::kSystem, "rank 1"));
  EXPECT_TRUE(failed_with(*call->operation, ErrorCode::kSystem, "the store is gone"));
}

// --- Groups
// ---------------------------------------------------------------------------------------

TEST(Fabric, remove_group__fails_what_runs_and_forgets_its_key) {
  FabricJob job(2);
  job.make(0);
  job.board.publish(*job.fabric(0));
  job.join(0);
  const auto other = job.add_group(0, "other");
  const auto call = make_call(other.front());
  EXPECT_TRUE(job.fabric(0)->driver().submit(call->operation));
  EXPECT_TRUE(eventually([&] { return job.board.look_ups("other") > 0; }));
  job.fabric(0)->remove_group(other, std::nullopt);
  EXPECT_TRUE(eventually([&] { return call->is_done(); }));
  EXPECT_TRUE(failed_with(*call->operation, ErrorCode::kAborted, "process group 'other'"));
  // One look-up may be under way; after it only the world's group is left to ask.
  const auto world_look_ups = [&] { return job.board.look_ups("world"); };
  const int before = world_look_ups();
  EXPECT_TRUE(eventually([&] { return world_look_ups() > before; }));
  const int others = job.board.look_ups("other");
  const int between = world_look_ups();
  EXPECT_TRUE(eventually([&] { return world_look_ups() > between; }));
  EXPECT_EQ(job.board.look_ups("other"), others);
}

TEST(Fabric, remove_group__tells_the_members_a_reason) {
  FabricJob job(2);
  job.make_all();
  job.expect_works();
  const auto call = job.start(0, {.kind = OperationKind::kReceive, .peer = 1});
  job.fabric(1)->remove_group(job.groups(1), Error{ErrorCode::kAborted, "given up"});
  EXPECT_TRUE(job.wait(0, *call));
  EXPECT_TRUE(failed_with(*call->operation, ErrorCode::kAborted, "given up"));
}

// --- Statistics and the end
// -----------------------------------------------------------------------

TEST(Fabric, stats__stay_readable_after_shutdown) {
  FabricJob job(2);
  job.make_all();
  job.expect_works(10'000);
  const FabricStats before = job.fabric(0)->stats();
  EXPECT_EQ(before.peers, 1u);
  EXPECT_GT(before.paths_active, 0u);
  EXPECT_GT(before.paths_used, 0u);
  EXPECT_GT(before.traffic.message_bytes_sent, 10'000u);
  job.fabric(0)->shutdown();
  const FabricStats after = job.fabric(0)->stats();
  EXPECT_EQ(after.peers, 1u);
  EXPECT_GE(after.traffic.packets_sealed, before.traffic.packets_sealed);
  EXPECT_EQ(after.traffic.message_bytes_sent, before.traffic.message_bytes_sent);
  EXPECT_EQ(job.fabric(0)->stats().traffic.packets_sealed, after.traffic.packets_sealed);
}

TEST(Fabric, shutdown__by_several_threads_and_again) {
  FabricJob job(2);
  job.make_all();
  job.expect_works();
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) threads.emplace_back([&] { job.fabric(0)->shutdown(); });
  for (std::thread& thread : threads) thread.join();
  job.fabric(0)->shutdown();
  const auto call = make_call(job.group(0));
  EXPECT_FALSE(job.fabric(0)->driver().submit(call->operation));
  const auto group =
      job.fabric(0)->add_group({"late", "late", "late", 0, {Rank{0}, Rank{1}}}, true);
  ASSERT_FALSE(group);
  EXPECT_EQ(group.error().code, ErrorCode::kAborted);
  job.fabric(0)->remove_group(job.groups(0), std::nullopt);
}

TEST(Fabric, shutdown__waits_for_the_look_up_that_is_under_way_and_for_no_other) {
  FabricJob job(3);
  std::mutex mutex;
  std::condition_variable wake;
  int look_ups = 0;         // guarded by mutex
  bool may_return = false;  // guarded by mutex
  job.make(0, [&](const std::string&, Rank, bool) -> Result<TestBoard::Entry> {
    std::unique_lock<std::mutex> lock(mutex);
    ++look_ups;
    wake.notify_all();
    wake.wait(lock, [&] { return may_return; });
    return TestBoard::Entry();
  });
  job.board.publish(*job.fabric(0));
  job.join(0);
  const auto call = job.start(0, {.kind = OperationKind::kReceive, .peer = 1});
  {
    std::unique_lock<std::mutex> lock(mutex);
    wake.wait(lock, [&] { return look_ups > 0; });
  }
  std::thread stopping([&] { job.fabric(0)->shutdown(); });
  EXPECT_TRUE(eventually([&] { return call->is_done(); })) << "operations end before that";
  EXPECT_TRUE(failed_with(*call->operation, ErrorCode::kAborted, "was shut down"));
  {
    const std::lock_guard<std::mutex> lock(mutex);
    may_return = true;
    wake.notify_all();
  }
  stopping.join();
  EXPECT_EQ(look_ups, 1);
}

TEST(Fabric, shutdown__called_by_a_callback_while_another_thread_shuts_down) {
  for (int round = 0; round < 10; ++round) {
    FabricJob job(1);
    job.make_all();
    auto call = make_call(job.group(0));
    call->then = [&] { job.fabric(0)->shutdown(); };
    EXPECT_TRUE(job.fabric(0)->driver().submit(call->operation));
    job.fabric(0)->shutdown();
    EXPECT_TRUE(eventually([&] { return call->is_done(); }));
  }
}

TEST(Fabric, destroy__with_pending_operations_that_outlive_it) {
  FabricJob job(2);
  job.make_all();
  job.expect_works();
  const auto call = job.start(0, {.kind = OperationKind::kReceive, .peer = 1});
  job.fabric(0).reset();
  EXPECT_EQ(call->callbacks, 1);
  EXPECT_TRUE(failed_with(*call->operation, ErrorCode::kAborted, "was shut down"));
  const auto other = job.start(1);
  EXPECT_TRUE(job.wait(1, *other));
  EXPECT_TRUE(failed_with(*other->operation, ErrorCode::kPeerLost, "rank 0"));
}

TEST(Fabric, destroy__by_the_callback_that_holds_the_last_reference) {
  for (int round = 0; round < 10; ++round) {
    FabricJob job(1);
    job.make_all();
    auto call = make_call(job.group(0));
    auto fabric = std::move(job.fabric(0));
    std::weak_ptr<Fabric> watched = fabric;
    call->operation->on_done = [held = fabric, raw = call.get()] { ++raw->callbacks; };
    EXPECT_TRUE(fabric->driver().submit(call->operation));
    fabric.reset();
    EXPECT_TRUE(eventually([&] { return call->is_done() && watched.expired(); }));
  }
}

// Who is in a group may come from a store or from a program.
TEST(Fabric, add_group__members_that_cannot_be_are_refused) {
  FabricJob job(2);
  job.make_all();
  Fabric& fabric = *job.fabric(0);
  const std::vector<std::pair<uint32_t, std::vector<Rank>>> wrong = {
      {0, {}},                           // nobody
      {1, {Rank{0}}},                    // a place beyond the last
      {0, {Rank{1}, Rank{0}}},           // another one's place
      {0, {Rank{0}, Rank{2}}},           // outside of the job
      {0, {Rank{0}, Rank{UINT32_MAX}}},  // likewise
      {0, {Rank{0}, Rank{1}, Rank{1}}},  // one twice
  };
  for (const auto& [rank, ranks] : wrong) {
    const auto group = fabric.add_group({"wrong", "wrong", "wrong", rank, ranks}, true);
    ASSERT_FALSE(group);
    EXPECT_EQ(group.error().code, ErrorCode::kConfig) << group.error().message;
  }
  job.expect_works();
}

TEST(Fabric, add_group__groups_with_one_identity_are_numbered) {
  FabricJob job(2, /*engines=*/2);
  job.make_all();
  std::set<std::pair<uint64_t, wire::GroupTail>> seen;
  for (int i = 0; i < 3; ++i) {
    const std::vector<Fabric::Groups> groups = {job.add_group(0, "other"),
                                                job.add_group(1, "other")};
    for (const auto& group : {groups[0][0], groups[0][1], groups[1][0], groups[1][1]}) {
      EXPECT_EQ(group->wire_id, groups[0][0]->wire_id);
      EXPECT_EQ(group->tail, groups[0][0]->tail);
    }
    EXPECT_TRUE(seen.emplace(groups[0][0]->wire_id, groups[0][0]->tail).second);
    if (i == 1) job.fabric(0)->remove_group(groups[0], std::nullopt);
  }
  job.expect_works();
}

TEST(Fabric, fork__the_child_refuses_and_leaves_everything_as_it_is) {
  FabricJob job(2);
  job.make_all();
  job.expect_works();
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(20);
    Fabric& fabric = *job.fabric(0);
    const auto group = fabric.add_group({"child", "child", "child", 0, {Rank{0}, Rank{1}}}, true);
    const bool is_right = !group && group.error().code == ErrorCode::kForked &&
                          !fabric.set_entry({}) && fabric.stats().peers == 0;
    fabric.remove_group(job.groups(0), std::nullopt);
    fabric.shutdown();
    job.fabric(0).reset();  // as the interpreter's exit does
    ::_exit(is_right ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  job.expect_works();
}

}  // namespace
}  // namespace securefabric::net
