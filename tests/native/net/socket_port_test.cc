#include "net/socket_port.h"

#include <gtest/gtest.h>

#include <array>
#include <optional>

#include "net/job_fixture.h"

namespace securefabric::net {
namespace {

using base::Duration;
using base::ErrorCode;
using base::Instant;

// An engine and its sockets, stepped by the test's only thread.
struct PortRank {
  PortRank(uint32_t rank, const RankOptions& options) {
    std::vector<UdpSocket> sockets;
    auto config = make_config(rank, 2, options, sockets);
    engine.emplace(std::move(config));
    port.emplace(std::move(sockets));
    world = make_group(rank, 2, 1);
    EXPECT_TRUE(engine->add_group(world));
  }

  // What the driver does in a turn.
  void turn() {
    const Instant at = now();
    const auto received = port->receive(*engine, at);
    ASSERT_TRUE(received) << received.error().message;
    if (engine->poll_timeout() <= at) engine->handle_timeout(at);
    const auto sent = port->transmit(*engine, at);
    ASSERT_TRUE(sent) << sent.error().message;
    while (engine->poll_wanted()) {
    }
    while (const auto operation = engine->poll_completed()) operation->is_visible = true;
  }
  std::shared_ptr<Call> start(size_t count) {
    auto call = make_call(world, {.count = count});
    engine->start(call->operation, now());
    return call;
  }

  std::optional<collective::Engine> engine;
  std::optional<SocketPort> port;
  std::shared_ptr<Group> world;
};

// Rank 0's sockets fail as told; rank 1's are the kernel's.
class SocketPortTest : public testing::Test {
 protected:
  void connect(bool use_gso, Duration death_timeout = transport::kDeathTimeoutDefault) {
    ranks_[0].emplace(
        0, RankOptions{.calls = &calls_, .use_gso = use_gso, .death_timeout = death_timeout});
    ranks_[1].emplace(1, RankOptions{.use_gso = use_gso});
    std::array<transport::PeerDescription, 2> entries;
    for (size_t i = 0; i < 2; ++i) {
      auto& endpoint = ranks_[i]->engine->endpoint();
      entries[i] = describe(endpoint, ranks_[i]->port->sockets());
      endpoint.set_own_entry(entries[i].entry);
    }
    for (size_t i = 0; i < 2; ++i) ranks_[i]->engine->install_peer(entries[1 - i], now());
    all_reduce(1);
  }
  bool turn_until(const std::function<bool()>& condition, Duration patience = kPatience) {
    return eventually(
        [&] {
          for (auto& rank : ranks_) rank->turn();
          return condition() || HasFatalFailure();
        },
        patience);
  }
  void all_reduce(size_t count) {
    const auto first = ranks_[0]->start(count);
    const auto second = ranks_[1]->start(count);
    ASSERT_TRUE(turn_until([&] { return is_visible(*first) && is_visible(*second); }));
    expect_sum(*first);
    expect_sum(*second);
  }
  static bool is_visible(const Call& call) { return call.operation->is_visible; }
  PortRank& flaky() { return *ranks_[0]; }
  PortRank& peer() { return *ranks_[1]; }

  UnreliableCalls calls_;
  std::array<std::optional<PortRank>, 2> ranks_;
};

TEST_F(SocketPortTest, transmit__carries_bursts_both_ways) {
  connect(/*use_gso=*/true);
  all_reduce(100'000);
  EXPECT_FALSE(flaky().port->blocked_socket());
  EXPECT_EQ(flaky().engine->endpoint().traffic().packets_lost, 0u);
}

TEST_F(SocketPortTest, transmit__keeps_what_would_block_and_asks_for_no_more) {
  connect(/*use_gso=*/true);
  calls_.error = EAGAIN;
  const auto first = flaky().start(100'000);
  const auto second = peer().start(100'000);
  ASSERT_TRUE(turn_until([&] { return flaky().port->blocked_socket().has_value(); }));
  const uint64_t sealed = flaky().engine->endpoint().traffic().packets_sealed;
  const int sends = calls_.sends;
  for (int i = 0; i < 10; ++i) {
    const auto sent = flaky().port->transmit(*flaky().engine, now());
    ASSERT_TRUE(sent);
  }
  EXPECT_EQ(flaky().engine->endpoint().traffic().packets_sealed, sealed) << "nothing piles up";
  EXPECT_EQ(calls_.sends, sends + 10) << "one attempt each";
  calls_.error = 0;
  ASSERT_TRUE(turn_until([&] { return is_visible(*first) && is_visible(*second); }));
  EXPECT_FALSE(flaky().port->blocked_socket());
  expect_sum(*first);
  expect_sum(*second);
}

// Without segmentation a burst is cut at any datagram; the rest must go out as it was sealed.
TEST_F(SocketPortTest, transmit__finishes_a_burst_datagram_by_datagram) {
  connect(/*use_gso=*/false);
  const auto first = flaky().start(40'000);
  const auto second = peer().start(40'000);
  int blocked_turns = 0;
  ASSERT_TRUE(turn_until([&] {
    blocked_turns += flaky().port->blocked_socket() ? 1 : 0;
    calls_.error = EAGAIN;
    calls_.sends_kept = 2;
    return is_visible(*first) && is_visible(*second);
  }));
  EXPECT_GT(blocked_turns, 3);
  expect_sum(*first);
  expect_sum(*second);
  EXPECT_EQ(peer().engine->endpoint().drops().malformed, 0u);
  EXPECT_EQ(peer().engine->endpoint().drops().auth_failed, 0u);
}

TEST_F(SocketPortTest, transmit__reports_what_it_finished_as_sent) {
  connect(/*use_gso=*/true);
  calls_.error = EAGAIN;
  const auto call = flaky().start(2'000);
  ASSERT_TRUE(turn_until([&] { return flaky().port->blocked_socket().has_value(); }));
  calls_.error = 0;
  const auto sent = flaky().port->transmit(*flaky().engine, now());
  ASSERT_TRUE(sent);
  EXPECT_TRUE(sent.value());
  EXPECT_FALSE(flaky().port->blocked_socket());
  const auto nothing = flaky().port->transmit(*flaky().engine, now());
  ASSERT_TRUE(nothing);
  EXPECT_FALSE(nothing.value());
}

TEST_F(SocketPortTest, transmit__an_unreachable_destination_is_a_loss_like_any_other) {
  connect(/*use_gso=*/true);
  calls_.error = ENETUNREACH;
  const auto first = flaky().start(10);
  const auto second = peer().start(10);
  const int sends = calls_.sends;
  ASSERT_TRUE(turn_until([&] { return calls_.sends > sends + 2; })) << "it is sent again";
  EXPECT_FALSE(flaky().port->blocked_socket());
  EXPECT_FALSE(is_visible(*second));
  calls_.error = 0;
  ASSERT_TRUE(turn_until([&] { return is_visible(*first) && is_visible(*second); }));
  expect_sum(*first);
}

TEST_F(SocketPortTest, transmit__a_dead_socket_is_an_error_that_names_it) {
  connect(/*use_gso=*/true);
  calls_.error = EBADF;
  const auto call = flaky().start(10);
  const auto sent = flaky().port->transmit(*flaky().engine, now());
  ASSERT_FALSE(sent);
  EXPECT_EQ(sent.error().code, ErrorCode::kSystem);
  EXPECT_NE(sent.error().message.find("127.0.0.1:"), std::string::npos) << sent.error().message;
}

TEST_F(SocketPortTest, transmit__a_socket_that_dies_with_a_burst_half_sent) {
  connect(/*use_gso=*/true);
  calls_.error = EAGAIN;
  const auto call = flaky().start(10);
  ASSERT_TRUE(turn_until([&] { return flaky().port->blocked_socket().has_value(); }));
  calls_.error = EBADF;
  EXPECT_FALSE(flaky().port->transmit(*flaky().engine, now()));
}

// What the host says is in the error of a peer that nobody can reach.
TEST_F(SocketPortTest, transmit__tells_the_engine_why_nothing_went_out) {
  connect(/*use_gso=*/true, /*death_timeout=*/Duration::seconds(2));
  calls_.error = EHOSTUNREACH;
  const auto call = flaky().start(10);
  ASSERT_TRUE(turn_until([&] { return is_visible(*call); }));
  ASSERT_TRUE(call->operation->error);
  const std::string& message = call->operation->error->message;
  EXPECT_NE(message.find("This host itself refused to send on"), std::string::npos) << message;
  EXPECT_NE(message.find(flaky().port->sockets()[0].local_address().to_text()), std::string::npos)
      << message;
  EXPECT_NE(message.find("No route to host"), std::string::npos) << message;
}

TEST_F(SocketPortTest, receive__says_whether_anything_came) {
  connect(/*use_gso=*/true);
  ASSERT_TRUE(turn_until([&] {  // no acknowledgement is on its way any more
    return flaky().engine->endpoint().is_drained() && peer().engine->endpoint().is_drained();
  }));
  const auto nothing = flaky().port->receive(*flaky().engine, now());
  ASSERT_TRUE(nothing);
  const auto call = peer().start(10);
  ASSERT_TRUE(peer().port->transmit(*peer().engine, now()));
  EXPECT_TRUE(eventually([&] {
    const auto received = flaky().port->receive(*flaky().engine, now());
    return received && received.value();
  }));
}

TEST_F(SocketPortTest, receive__drops_what_strangers_send) {
  connect(/*use_gso=*/true);
  UdpSocket stranger = bind_or_die();
  const auto garbage = random_bytes(3000, 3);
  const auto& target = flaky().port->sockets()[1].local_address();
  EXPECT_EQ(stranger.send_burst(target, garbage, 1000).outcome, SendOutcome::kSent);
  const auto dropped = [&] {
    const transport::DropCounters& drops = flaky().engine->endpoint().drops();
    return drops.bad_version + drops.unknown_spi + drops.path_mismatch;
  };
  EXPECT_TRUE(turn_until([&] { return dropped() >= 3; })) << "each segment by itself";
  all_reduce(10);
}

}  // namespace
}  // namespace securefabric::net
