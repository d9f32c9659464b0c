// Two ranks that exchange messages over several paths: data, bursts, path states.
#include "transport/connection.h"

#include <gtest/gtest.h>

#include "transfers.h"

namespace securefabric::transport {
namespace {

using base::Duration;

// --- Data ---

TEST(Connection, messages_of_every_size_arrive_intact) {
  EndpointPair pair;
  ASSERT_TRUE(pair.join());
  Transfers transfers(pair);
  uint64_t operation = 0;
  for (const size_t size : {0, 1, 15, 16, 17, 1000, 8863, 8864, 8865, 16'383, 16'384, 16'385,
                            65'535, 65'536, 1'000'003}) {
    transfers.both(collective_key(operation), size);
    transfers.both(point_to_point_key(operation), size);
    ++operation;
  }
  ASSERT_TRUE(transfers.run());
  EXPECT_TRUE(transfers.is_intact());
  EXPECT_EQ(pair.all_drops(0) + pair.all_drops(1), 0u);
  EXPECT_EQ(pair.endpoint(0).traffic().packets_lost, 0u);
  EXPECT_EQ(pair.endpoint(0).traffic().fragments_resent, 0u);
  EXPECT_EQ(pair.endpoint(1).traffic().duplicate_fragments, 0u);
}

TEST(Connection, messages_wait_until_their_receive_is_posted) {
  EndpointPair pair;
  ASSERT_TRUE(pair.join());
  Transfers transfers(pair);
  transfers.send(collective_key(1), 1000);
  transfers.send(point_to_point_key(2), kLarge);
  transfers.send(collective_key(3), kLarge);
  pair.run_for(Duration::seconds(1));
  EXPECT_LT(pair.endpoint(0).traffic().message_bytes_sent, 2000u);
  transfers.receive(collective_key(1), 1000);
  transfers.receive(point_to_point_key(2), kLarge);
  transfers.receive(collective_key(3), kLarge);
  ASSERT_TRUE(transfers.run());
  EXPECT_TRUE(transfers.is_intact());
  EXPECT_EQ(pair.endpoint(1).traffic().unexpected_messages, 2u);
}

TEST(Connection, data_is_sprayed_over_all_paths_in_whole_bursts) {
  EndpointPair pair;
  ASSERT_TRUE(pair.join());
  Transfers transfers(pair);
  transfers.both(collective_key(0), kLarge);  // windows grow
  ASSERT_TRUE(transfers.run());
  pair.bursts.clear();
  std::map<uint16_t, size_t> datagrams;
  pair.filter = [&datagrams](Datagram& datagram) {
    wire::Header header;
    EXPECT_EQ(wire::decode_header(datagram.bytes, header), wire::HeaderStatus::kOk);
    if (datagram.from == 0 && datagram.bytes.size() > 8000) ++datagrams[header.path.value];
    return true;
  };
  transfers.both(collective_key(1), kLarge);
  ASSERT_TRUE(transfers.run());
  EXPECT_EQ(datagrams.size(), 4u);
  for (const auto& [path, count] : datagrams) EXPECT_GT(count, 40u) << path;
  size_t full = 0;
  for (const auto& burst : pair.bursts) full += burst.bytes >= 7 * kDatagramBytesJumbo;
  EXPECT_GE(full, kLarge / (7 * kDatagramBytesJumbo) - 4);
}

TEST(Connection, bursts_have_equal_segments_at_every_datagram_size) {
  for (const size_t bytes :
       {size_t{1200}, size_t{1472}, size_t{4096}, kDatagramBytesJumbo, kDatagramBytesMax}) {
    for (const size_t segments : {size_t{1}, size_t{3}, kBurstSegmentsMax}) {
      SCOPED_TRACE(std::to_string(bytes) + " x " + std::to_string(segments));
      PairOptions options;
      options.datagram_bytes = bytes;
      options.burst_segments = segments;
      EndpointPair pair(options);
      ASSERT_TRUE(pair.join());
      Transfers transfers(pair);
      for (uint64_t i = 0; i < 40; ++i) transfers.both(collective_key(i), 100 * i);
      transfers.both(collective_key(99), 300'000);
      ASSERT_TRUE(transfers.run());
      EXPECT_TRUE(transfers.is_intact());
    }
  }
}

// The receiver waits for more before it acks, and cannot know that the sender may send no more.
TEST(Connection, small_windows_of_the_peer_do_not_wait_for_late_acks) {
  for (const size_t datagram : {kDatagramBytesJumbo, kDatagramBytesMax}) {
    for (const uint64_t budget : {40'000u, 50'000u, 80'000u, 97'000u, 130'000u}) {
      SCOPED_TRACE(std::to_string(datagram) + " of " + std::to_string(budget));
      PairOptions options;
      options.datagram_bytes = datagram;
      options.receive_budget_bytes = budget;
      EndpointPair pair(options);
      ASSERT_TRUE(pair.join());
      Transfers transfers(pair);
      transfers.both(collective_key(0), kLarge);
      ASSERT_TRUE(transfers.run());
      const base::Instant begun = pair.now();
      transfers.both(collective_key(1), kLarge);
      ASSERT_TRUE(transfers.run());
      // A round trip takes 100 us and carries a packet at least.
      const auto round_trips = static_cast<int64_t>(kLarge / datagram) + 2;
      EXPECT_LT((pair.now() - begun).micros(), round_trips * 150);
    }
  }
}

TEST(Connection, small_datagrams_of_the_peer_are_respected) {
  EndpointPair pair;
  pair.node(1).description.datagram_bytes_max = 1400;
  pair.endpoint(0).require_peer(EndpointPair::rank(1), pair.now());
  size_t largest = 0;
  pair.filter = [&largest](Datagram& datagram) {
    if (datagram.to == 1) largest = std::max(largest, datagram.bytes.size());
    return true;
  };
  Transfers transfers(pair);
  transfers.send(collective_key(1), 10'000);
  ASSERT_TRUE(pair.run_until([&pair] { return pair.is_joined(); }, Duration::seconds(1)));
  transfers.receive(collective_key(1), 10'000);
  ASSERT_TRUE(transfers.run());
  EXPECT_EQ(largest, 1400u);
}

// Far more small messages than the credit covers, with no receive posted for any of them.
TEST(Connection, credit_runs_out_and_comes_back) {
  EndpointPair pair;
  ASSERT_TRUE(pair.join());
  Transfers transfers(pair);
  constexpr uint64_t kCount = 300;
  for (uint64_t i = 0; i < kCount; ++i) transfers.send(collective_key(i), kEagerMessageBytesMax);
  pair.run_for(Duration::seconds(1));
  EXPECT_EQ(failures(pair), 0u);
  EXPECT_LE(pair.endpoint(1).traffic().message_bytes_received, kEagerWindow);
  for (uint64_t i = 0; i < kCount; ++i) transfers.receive(collective_key(i), kEagerMessageBytesMax);
  ASSERT_TRUE(transfers.run());
  EXPECT_TRUE(transfers.is_intact());
  // Credit is back: as many again go out eagerly, in one go.
  for (uint64_t i = 0; i < 60; ++i) {
    transfers.both(collective_key(1000 + i), kEagerMessageBytesMax);
    ASSERT_TRUE(transfers.run());
  }
  EXPECT_EQ(failures(pair), 0u);
}

TEST(Connection, tiny_messages_share_packets) {
  EndpointPair pair;
  ASSERT_TRUE(pair.join());
  const uint64_t before = pair.endpoint(0).traffic().bytes_sealed;
  Transfers transfers(pair);
  for (uint64_t i = 0; i < 1000; ++i) transfers.both(collective_key(i), 8);
  ASSERT_TRUE(transfers.run());
  // 72 bytes each; padding must not double that.
  EXPECT_LE(pair.endpoint(0).traffic().bytes_sealed - before, 1000u * 72 * 3 / 2);
}

TEST(Connection, an_idle_transfer_costs_few_acks) {
  EndpointPair pair;
  ASSERT_TRUE(pair.join());
  Transfers transfers(pair);
  transfers.both(collective_key(1), kLarge);
  ASSERT_TRUE(transfers.run());
  const uint64_t data = pair.endpoint(1).traffic().packets_opened;
  EXPECT_LT(pair.endpoint(1).traffic().packets_sealed, data / 3);
}

// --- Paths ---

bool is_on_path(const Datagram& datagram, base::PathId path) {
  wire::Header header;
  SF_CHECK(wire::decode_header(datagram.bytes, header) == wire::HeaderStatus::kOk);
  return header.path == path || header.path == path.reversed();
}

TEST(Connection, a_dead_path_is_suspected_and_its_data_moves) {
  EndpointPair pair;
  ASSERT_TRUE(pair.join());
  const base::PathId dead = base::PathId::from_sockets(0, 0);
  bool is_dead = true;
  pair.filter = [&](Datagram& datagram) { return !is_dead || !is_on_path(datagram, dead); };
  Transfers transfers(pair);
  for (uint64_t i = 0; i < 8; ++i) transfers.both(collective_key(i), kLarge);
  ASSERT_TRUE(transfers.run(Duration::seconds(1)));
  EXPECT_TRUE(transfers.is_intact());
  EXPECT_EQ(pair.active_paths(0, 1), 3u);
  EXPECT_EQ(pair.endpoint(0).traffic().paths_suspected, 1u);

  // It is probed for ever, at most ten milliseconds to a second apart, and returns when it answers.
  pair.run_for(Duration::seconds(5));
  EXPECT_EQ(pair.active_paths(0, 1), 3u);
  is_dead = false;
  EXPECT_TRUE(pair.run_until([&pair] { return pair.is_joined(); }, Duration::millis(1100)));
  transfers.both(collective_key(99), kLarge);
  ASSERT_TRUE(transfers.run());
  EXPECT_TRUE(transfers.is_intact());
}

TEST(Connection, one_echo_does_not_bring_a_suspect_path_back) {
  EndpointPair pair;
  ASSERT_TRUE(pair.join());
  const base::PathId dead = base::PathId::from_sockets(0, 0);
  int echoes_left = 0;
  pair.filter = [&](Datagram& datagram) {
    if (!is_on_path(datagram, dead)) return true;
    return datagram.from == 0 ? echoes_left > 0 : echoes_left-- > 0;
  };
  Transfers transfers(pair);
  for (uint64_t i = 0; i < 8; ++i) transfers.both(collective_key(i), kLarge);
  ASSERT_TRUE(transfers.run());
  ASSERT_EQ(pair.active_paths(0, 1), 3u);
  echoes_left = 1;
  pair.run_for(Duration::seconds(3));
  EXPECT_EQ(pair.active_paths(0, 1), 3u);
}

TEST(Connection, the_last_path_is_never_given_up) {
  PairOptions options;
  options.sockets = 1;
  EndpointPair pair(options);
  ASSERT_TRUE(pair.join());
  bool is_dead = true;
  pair.filter = [&is_dead](Datagram&) { return !is_dead; };
  Transfers transfers(pair);
  transfers.both(collective_key(1), kLarge);
  pair.run_for(Duration::seconds(5));
  EXPECT_EQ(pair.active_paths(0, 1), 1u);
  EXPECT_EQ(failures(pair), 0u);
  is_dead = false;
  ASSERT_TRUE(transfers.run(Duration::seconds(3)));
  EXPECT_TRUE(transfers.is_intact());
}

TEST(Connection, all_paths_fail_and_come_back_within_the_death_timeout) {
  EndpointPair pair;
  ASSERT_TRUE(pair.join());
  bool is_dead = false;
  pair.filter = [&is_dead](Datagram&) { return !is_dead; };
  Transfers transfers(pair);
  for (uint64_t i = 0; i < 10; ++i) transfers.both(collective_key(i), kLarge);
  pair.run_for(Duration::micros(500));
  is_dead = true;
  pair.run_for(Duration::seconds(8));
  is_dead = false;
  ASSERT_TRUE(transfers.run(Duration::seconds(10)));
  EXPECT_TRUE(transfers.is_intact());
  EXPECT_TRUE(pair.run_until([&pair] { return pair.is_joined(); }, Duration::seconds(3)));
  EXPECT_EQ(failures(pair), 0u);
}

// --- Loss recovery ---

bool is_data(const Datagram& datagram) {
  return datagram.from == 0 && datagram.bytes.size() > 4000;
}

TEST(Connection, a_lost_tail_is_probed_on_another_path_before_any_timeout) {
  EndpointPair pair;
  ASSERT_TRUE(pair.join());
  Transfers transfers(pair);
  transfers.both(collective_key(1), kLarge);
  ASSERT_TRUE(transfers.run());
  bool is_lost = false;
  uint16_t lost_on = 0;
  uint16_t next_on = 0;
  pair.filter = [&](Datagram& datagram) {
    if (!is_data(datagram)) return true;
    wire::Header header;
    SF_CHECK(wire::decode_header(datagram.bytes, header) == wire::HeaderStatus::kOk);
    if (is_lost) next_on = header.path.value;
    if (is_lost) return true;
    is_lost = true;
    lost_on = header.path.value;
    return false;
  };
  const base::Instant begin = pair.now();
  transfers.both(collective_key(2), 8000);
  ASSERT_TRUE(transfers.run());
  EXPECT_LE(pair.now() - begin, Duration::millis(3));
  EXPECT_NE(next_on, lost_on);
  EXPECT_EQ(pair.endpoint(0).traffic().tail_probes, 1u);
  EXPECT_EQ(pair.endpoint(0).traffic().probe_timeouts, 0u);
  EXPECT_EQ(pair.endpoint(0).traffic().paths_suspected, 0u);
}

// What a busy host looks like: nothing is lost, but nothing is answered for a while either.
TEST(Connection, a_peer_that_waits_for_its_turn_causes_no_timeout_and_no_suspicion) {
  EndpointPair pair;
  ASSERT_TRUE(pair.join());
  Transfers transfers(pair);
  base::Random random(7);
  uint64_t operation = 0;
  for (int i = 0; i < 200; ++i) {
    transfers.both(collective_key(operation++), 300'000);
    pair.run_for(Duration::micros(static_cast<int64_t>(random.below(800))));
    pair.node(1).is_busy = true;
    pair.run_for(Duration::millis(static_cast<int64_t>(random.below(15))));
    pair.node(1).is_busy = false;
  }
  ASSERT_TRUE(transfers.run());
  EXPECT_TRUE(transfers.is_intact());
  EXPECT_EQ(pair.endpoint(0).traffic().probe_timeouts, 0u);
  EXPECT_EQ(pair.endpoint(0).traffic().packets_lost, 0u);
  EXPECT_EQ(pair.endpoint(0).traffic().paths_suspected, 0u);
}

TEST(Connection, order_that_breaks_inside_a_path_is_learnt) {
  EndpointPair pair;
  ASSERT_TRUE(pair.join());
  base::Random random(11);
  pair.filter = [&](Datagram& datagram) {
    // A burst in fifty is a few milliseconds late, as when its thread has moved to another core.
    if (is_data(datagram) && random.chance(0.02)) datagram.at = datagram.at + Duration::millis(3);
    return true;
  };
  Transfers transfers(pair);
  transfers.both(collective_key(1), kLarge);
  ASSERT_TRUE(transfers.run());
  const uint64_t learning = pair.endpoint(0).traffic().spurious_losses;
  for (uint64_t i = 2; i < 12; ++i) transfers.both(collective_key(i), kLarge);
  ASSERT_TRUE(transfers.run());
  EXPECT_TRUE(transfers.is_intact());
  EXPECT_LE(pair.endpoint(0).traffic().spurious_losses, learning + 10);
  EXPECT_EQ(pair.endpoint(0).traffic().probe_timeouts, 0u);
}

// --- Path MTU ---

TEST(Connection, full_packets_do_not_vanish_on_a_path_that_carries_less) {
  EndpointPair pair;
  const base::PathId narrow = base::PathId::from_sockets(0, 0);
  pair.filter = [&](Datagram& datagram) {
    return !is_on_path(datagram, narrow) || datagram.bytes.size() <= 3000;
  };
  pair.endpoint(0).require_peer(EndpointPair::rank(1), pair.now());
  pair.run_for(Duration::seconds(2));
  for (const PathReport& path : pair.paths(0, 1)) {
    const size_t carries = path.id == narrow ? 3000 : kDatagramBytesJumbo;
    EXPECT_LE(path.mtu_bytes, carries);
    EXPECT_GT(path.mtu_bytes + kMtuStep, carries);
  }
  Transfers transfers(pair);
  transfers.both(collective_key(1), kLarge);
  ASSERT_TRUE(transfers.run());
  EXPECT_TRUE(transfers.is_intact());
  EXPECT_EQ(pair.active_paths(0, 1), 4u);
  EXPECT_EQ(pair.endpoint(0).traffic().packets_lost, 0u);
}

TEST(Connection, an_mtu_that_shrinks_while_data_flows_is_noticed) {
  PairOptions options;
  options.sockets = 1;
  EndpointPair pair(options);
  ASSERT_TRUE(pair.join());
  size_t mtu = kDatagramBytesJumbo;
  pair.filter = [&](Datagram& datagram) { return datagram.bytes.size() <= mtu; };
  Transfers transfers(pair);
  for (uint64_t i = 0; i < 10; ++i) transfers.both(collective_key(i), kLarge);
  pair.run_for(Duration::millis(1));
  mtu = 1400;
  ASSERT_TRUE(transfers.run(Duration::seconds(3)));
  EXPECT_TRUE(transfers.is_intact());
  EXPECT_LE(pair.paths(0, 1)[0].mtu_bytes, 1400u);
}

// --- Credits against incast ---

TEST(Connection, no_more_is_in_flight_than_the_peer_has_room_for) {
  PairOptions options;
  options.receive_budget_bytes = 300'000;
  options.latency = Duration::millis(5);
  EndpointPair pair(options);
  ASSERT_TRUE(pair.join());
  pair.run_for(Duration::millis(20));
  Transfers transfers(pair);
  for (uint64_t i = 0; i < 3; ++i) transfers.both(collective_key(i), kLarge);
  uint64_t most = 0;
  while (!transfers.is_done() && pair.now() < base::Instant::from_nanos(10'000'000'000)) {
    pair.run_for(Duration::millis(1));
    uint64_t in_flight = 0;
    for (const PathReport& path : pair.paths(0, 1)) in_flight += path.in_flight_bytes;
    most = std::max(most, in_flight);
  }
  EXPECT_TRUE(transfers.is_done());
  EXPECT_TRUE(transfers.is_intact());
  EXPECT_LE(most, options.receive_budget_bytes);
  EXPECT_GT(most, options.receive_budget_bytes / 2);
}

}  // namespace
}  // namespace securefabric::transport
