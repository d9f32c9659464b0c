// Two ranks that talk: joining, data over several paths, loss, liveness, leaving.
#include "transport/connection.h"

#include <gtest/gtest.h>

#include "endpoint_pair.h"

namespace securefabric::transport {
namespace {

using base::Duration;

constexpr size_t kLarge = 3'000'000;

// Posts sends on node 0 and receives on node 1, and knows what must come of it.
class Transfers {
 public:
  explicit Transfers(EndpointPair& pair) : pair_(pair) {}

  void send(const wire::MessageKey& key, size_t size) {
    contents_.push_back(pattern(size, contents_.size() + 1));
    const Token token = contents_.size();
    pair_.endpoint(0).post_send(EndpointPair::rank(1), {key, signature(), contents_.back(), token});
    large_ += size > kCopiedMessageBytesMax;
  }
  // Receives in the order of sends. Large collective ones are granted unasked.
  void receive(const wire::MessageKey& key, size_t size) {
    sinks_.push_back(std::make_unique<BufferSink>(size));
    const PostedReceive receive{sinks_.size(), sinks_.back().get(), size, signature()};
    auto& matcher = pair_.node(1).matcher;
    const auto held = std::find_if(matcher.held.begin(), matcher.held.end(),
                                   [&key](const auto& one) { return one.key == key; });
    if (held != matcher.held.end()) {
      pair_.endpoint(1).attach_receive(EndpointPair::rank(0), held->message_id, receive);
      return;
    }
    matcher.post(EndpointPair::rank(0), key, receive);
    if (key.channel == wire::Channel::kCollective && size > kEagerMessageBytesMax) {
      pair_.endpoint(1).post_grant(EndpointPair::rank(0), key, size);
    }
  }
  void both(const wire::MessageKey& key, size_t size) {
    receive(key, size);
    send(key, size);
  }
  bool is_done() const {
    return pair_.events_of<ReceiveCompleted>(1).size() == sinks_.size() &&
           pair_.events_of<SendDelivered>(0).size() == large_ && pair_.endpoint(0).is_drained();
  }
  bool run(Duration limit = Duration::seconds(5)) {
    return pair_.run_until([this] { return is_done(); }, limit);
  }
  // Every byte is where it belongs.
  bool is_intact() const {
    for (size_t i = 0; i < sinks_.size(); ++i) {
      if (sinks_[i]->bytes() != contents_[i]) return false;
    }
    return sinks_.size() == contents_.size();
  }

 private:
  EndpointPair& pair_;
  std::deque<ByteVector> contents_;
  std::vector<std::unique_ptr<BufferSink>> sinks_;
  size_t large_ = 0;  // messages that report delivery
};

size_t failures(EndpointPair& pair) {
  return pair.events_of<PeerFailed>(0).size() + pair.events_of<PeerFailed>(1).size();
}

// --- Joining ---

TEST(Connection, both_ends_join_and_validate_every_path) {
  EndpointPair pair;
  ASSERT_TRUE(pair.join());
  EXPECT_EQ(pair.active_paths(0, 1), 4u);
  EXPECT_EQ(pair.active_paths(1, 0), 4u);
  EXPECT_EQ(pair.all_drops(0) + pair.all_drops(1), 0u);
  for (const PathReport& path : pair.paths(0, 1)) EXPECT_NEAR(path.srtt_us, 100, 1);
  EXPECT_TRUE(pair.endpoint(0).last_heard_at(EndpointPair::rank(1)).has_value());
}

TEST(Connection, one_end_wants_the_other_and_a_hint_does_the_rest) {
  EndpointPair pair;
  pair.endpoint(0).require_peer(EndpointPair::rank(1), pair.now());
  ASSERT_TRUE(pair.run_until([&pair] { return pair.is_joined(); }, Duration::seconds(1)));
  EXPECT_EQ(pair.node(1).lookups, 1u);
  EXPECT_GT(pair.endpoint(1).drops().unknown_spi, 0u);
}

TEST(Connection, the_first_round_trip_is_timed_from_the_right_challenge) {
  PairOptions options;
  options.latency = Duration::millis(20);  // slower than the first repetitions
  EndpointPair pair(options);
  pair.endpoint(0).require_peer(EndpointPair::rank(1), pair.now());
  pair.endpoint(1).require_peer(EndpointPair::rank(0), pair.now());
  ASSERT_TRUE(pair.run_until([&pair] { return pair.is_joined(); }, Duration::seconds(1)));
  for (const PathReport& path : pair.paths(0, 1)) EXPECT_NEAR(path.srtt_us, 40'000, 100);
}

TEST(Connection, joining_survives_the_loss_of_most_packets) {
  EndpointPair pair;
  base::Random random(3);
  pair.filter = [&random](Datagram&) { return random.chance(0.3); };
  pair.endpoint(0).require_peer(EndpointPair::rank(1), pair.now());
  const auto have_met = [&pair] {
    return pair.active_paths(0, 1) > 0 && pair.active_paths(1, 0) > 0;
  };
  EXPECT_TRUE(pair.run_until(have_met, Duration::seconds(5)));
  pair.run_for(Duration::seconds(30));
  EXPECT_EQ(failures(pair), 0u);
  pair.filter = nullptr;
  EXPECT_TRUE(pair.run_until([&pair] { return pair.is_joined(); }, Duration::seconds(3)));
}

TEST(Connection, nobody_answers_and_the_error_says_what_to_look_at) {
  PairOptions options;
  options.join_timeout = Duration::seconds(5);
  EndpointPair pair(options);
  pair.node(1).is_paused = true;
  pair.endpoint(0).require_peer(EndpointPair::rank(1), pair.now());
  pair.run_for(Duration::millis(4999));
  EXPECT_EQ(failures(pair), 0u);
  pair.run_for(Duration::millis(2));
  ASSERT_EQ(failures(pair), 1u);
  const base::Error error = pair.events_of<PeerFailed>(0)[0].error;
  EXPECT_EQ(error.code, base::ErrorCode::kPeerLost);
  EXPECT_NE(error.message.find("rank 1 (10.0.1.0:4000)"), std::string::npos) << error.message;
  EXPECT_NE(error.message.find("firewall"), std::string::npos) << error.message;
  EXPECT_EQ(pair.endpoint(0).last_heard_at(EndpointPair::rank(1)), std::nullopt);
  // The challenges backed off: 10, 20, ... ms, then once per second, on four paths.
  EXPECT_LE(pair.bursts.size(), 4u * 13);
}

TEST(Connection, no_entry_is_published_and_the_error_says_so) {
  EndpointPair pair;
  pair.answers_lookups = false;
  pair.endpoint(0).require_peer(EndpointPair::rank(1), pair.now());
  pair.run_for(kJoinTimeoutDefault + Duration::millis(1));
  ASSERT_EQ(failures(pair), 1u);
  const std::string message = pair.events_of<PeerFailed>(0)[0].error.message;
  EXPECT_NE(message.find("no roster entry"), std::string::npos) << message;
}

TEST(Connection, another_job_key_and_the_error_says_so) {
  EndpointPair pair;
  // Node 1 believes that node 0 published something else, so the keys differ.
  pair.node(0).description.entry.push_back(1);
  pair.endpoint(0).require_peer(EndpointPair::rank(1), pair.now());
  pair.endpoint(1).require_peer(EndpointPair::rank(0), pair.now());
  pair.run_for(kJoinTimeoutDefault + Duration::millis(1));
  ASSERT_EQ(failures(pair), 2u);
  const std::string message = pair.events_of<PeerFailed>(0)[0].error.message;
  EXPECT_NE(message.find("job key"), std::string::npos) << message;
  EXPECT_GT(pair.endpoint(0).drops().auth_failed, 0u);
  EXPECT_EQ(pair.endpoint(0).drops().auth_failed, pair.all_drops(0));
}

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
  pair.bursts.clear();
  std::map<uint16_t, size_t> datagrams;
  pair.filter = [&datagrams](Datagram& datagram) {
    wire::Header header;
    EXPECT_EQ(wire::decode_header(datagram.bytes, header), wire::HeaderStatus::kOk);
    if (datagram.from == 0 && datagram.bytes.size() > 8000) ++datagrams[header.path.value];
    return true;
  };
  Transfers transfers(pair);
  transfers.both(collective_key(1), kLarge);
  ASSERT_TRUE(transfers.run());
  EXPECT_EQ(datagrams.size(), 4u);
  for (const auto& [path, count] : datagrams) EXPECT_GT(count, 40u) << path;
  size_t full = 0;
  for (const auto& burst : pair.bursts) full += burst.bytes >= 7 * kDatagramBytesMax;
  EXPECT_GE(full, kLarge / (7 * kDatagramBytesMax) - 4);
}

TEST(Connection, bursts_have_equal_segments_at_every_datagram_size) {
  for (const size_t bytes : {size_t{1200}, size_t{1472}, size_t{4096}, kDatagramBytesMax}) {
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

// --- Loss ---

TEST(Connection, random_loss_in_both_directions_loses_nothing) {
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    EndpointPair pair;
    ASSERT_TRUE(pair.join());
    base::Random random(seed);
    const double rate = seed % 2 == 0 ? 0.02 : 0.2;
    pair.filter = [&random, rate](Datagram& datagram) {
      datagram.at = datagram.at + Duration::micros(static_cast<int64_t>(random.below(100)));
      return !random.chance(rate);
    };
    Transfers transfers(pair);
    transfers.both(collective_key(1), kLarge);
    transfers.both(point_to_point_key(2), kLarge / 3);
    for (uint64_t i = 10; i < 200; ++i) transfers.both(collective_key(i), random.below(3000));
    ASSERT_TRUE(transfers.run(Duration::seconds(60)));
    EXPECT_TRUE(transfers.is_intact());
    EXPECT_GT(pair.endpoint(0).traffic().packets_lost, 0u);
    EXPECT_EQ(failures(pair), 0u);
  }
}

TEST(Connection, one_lost_packet_costs_one_resend_and_no_timeout) {
  EndpointPair pair;
  ASSERT_TRUE(pair.join());
  int countdown = 20;
  pair.filter = [&countdown](Datagram& datagram) {
    return datagram.from != 0 || datagram.bytes.size() < 8000 || --countdown != 0;
  };
  Transfers transfers(pair);
  transfers.both(collective_key(1), kLarge);
  ASSERT_TRUE(transfers.run());
  EXPECT_TRUE(transfers.is_intact());
  const TrafficCounters traffic = pair.endpoint(0).traffic();
  EXPECT_EQ(traffic.packets_lost, 1u);
  EXPECT_EQ(traffic.fragments_resent, 1u);
  EXPECT_EQ(traffic.probe_timeouts, 0u);
  EXPECT_EQ(traffic.spurious_losses, 0u);
}

TEST(Connection, lost_acks_cost_no_resend) {
  EndpointPair pair;
  ASSERT_TRUE(pair.join());
  base::Random random(5);
  pair.filter = [&random](Datagram& datagram) { return datagram.from == 0 || !random.chance(0.3); };
  Transfers transfers(pair);
  transfers.both(collective_key(1), kLarge);
  ASSERT_TRUE(transfers.run());
  EXPECT_LE(pair.endpoint(0).traffic().fragments_resent, 8u);
}

TEST(Connection, both_directions_at_once_detect_losses_without_timeouts) {
  EndpointPair pair;
  ASSERT_TRUE(pair.join());
  base::Random random(8);
  pair.filter = [&random](Datagram& datagram) {
    return datagram.bytes.size() < 8000 || !random.chance(0.02);
  };
  Transfers forth(pair);
  forth.both(collective_key(1), kLarge);
  // The same amount the other way, so that acks travel with data.
  const ByteVector content = pattern(kLarge, 99);
  BufferSink sink(kLarge);
  pair.node(0).matcher.post(EndpointPair::rank(1), collective_key(2),
                            {77, &sink, kLarge, signature()});
  pair.endpoint(0).post_grant(EndpointPair::rank(1), collective_key(2), kLarge);
  pair.endpoint(1).post_send(EndpointPair::rank(0), {collective_key(2), signature(), content, 78});
  const auto is_done = [&] { return forth.is_done() && sink.placed() == kLarge; };
  ASSERT_TRUE(pair.run_until(is_done, Duration::seconds(2)));
  EXPECT_TRUE(forth.is_intact());
  EXPECT_EQ(sink.bytes(), content);
  EXPECT_LE(pair.endpoint(0).traffic().probe_timeouts, 4u);
}

TEST(Connection, the_last_packet_is_lost_and_a_probe_finds_out) {
  EndpointPair pair;
  ASSERT_TRUE(pair.join());
  bool drop_all = true;
  pair.filter = [&drop_all](Datagram& datagram) { return datagram.from != 0 || !drop_all; };
  Transfers transfers(pair);
  transfers.both(collective_key(1), 100);
  pair.turn();
  drop_all = false;
  ASSERT_TRUE(transfers.run(kPtoMin * 3));
  EXPECT_EQ(pair.endpoint(0).traffic().probe_timeouts, 1u);
}

// One microsecond per datagram and path, and one in ten overtaken by the next dozen.
TEST(Connection, a_reordering_path_causes_no_resends) {
  EndpointPair pair;
  ASSERT_TRUE(pair.join());
  base::Random random(6);
  std::map<uint16_t, base::Instant> busy_until;
  pair.filter = [&](Datagram& datagram) {
    wire::Header header;
    EXPECT_EQ(wire::decode_header(datagram.bytes, header), wire::HeaderStatus::kOk);
    if (datagram.from != 0) return true;
    base::Instant& busy = busy_until[header.path.value];
    busy = datagram.at = std::max(datagram.at, busy + Duration::micros(1));
    if (random.chance(0.1)) datagram.at = datagram.at + Duration::micros(12);
    return true;
  };
  Transfers transfers(pair);
  transfers.both(collective_key(1), kLarge);
  ASSERT_TRUE(transfers.run());
  EXPECT_EQ(pair.endpoint(0).traffic().fragments_resent, 0u);
}

TEST(Connection, everything_is_duplicated_and_placed_once) {
  EndpointPair pair;
  ASSERT_TRUE(pair.join());
  pair.filter = [&pair](Datagram& datagram) {
    pair.inject(datagram.from, datagram.to, datagram.socket, datagram.bytes, Duration::micros(90));
    return true;
  };
  Transfers transfers(pair);
  transfers.both(collective_key(1), kLarge);
  ASSERT_TRUE(transfers.run());
  EXPECT_TRUE(transfers.is_intact());
  EXPECT_GT(pair.endpoint(1).drops().replay_duplicate, 300u);
  EXPECT_EQ(pair.endpoint(1).traffic().duplicate_fragments, 0u);
}

TEST(Connection, congestion_marks_are_counted) {
  EndpointPair pair;
  ASSERT_TRUE(pair.join());
  pair.filter = [](Datagram& datagram) { return datagram.is_marked_ce = true; };
  Transfers transfers(pair);
  transfers.both(collective_key(1), 1000);
  ASSERT_TRUE(transfers.run());
  EXPECT_GT(pair.endpoint(1).traffic().ce_received, 0u);
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

// --- Liveness and leaving ---

TEST(Connection, an_idle_link_has_a_heartbeat_and_nothing_else) {
  EndpointPair pair;
  ASSERT_TRUE(pair.join());
  pair.run_for(Duration::millis(100));
  const uint64_t before = pair.endpoint(0).traffic().packets_sealed;
  pair.run_for(Duration::seconds(60));
  EXPECT_EQ(failures(pair), 0u);
  const uint64_t sent = pair.endpoint(0).traffic().packets_sealed - before;
  // Per second: a ping on each of four paths, and acks for the peer's four.
  EXPECT_GE(sent, 59u * 4);
  EXPECT_LE(sent, 61u * 8);
  EXPECT_EQ(pair.endpoint(0).traffic().probe_timeouts, 0u);
}

TEST(Connection, a_silent_peer_is_dead_after_the_death_timeout) {
  PairOptions options;
  options.death_timeout = Duration::seconds(3);
  EndpointPair pair(options);
  ASSERT_TRUE(pair.join());
  const base::Instant heard = *pair.endpoint(0).last_heard_at(EndpointPair::rank(1));
  pair.node(1).is_paused = true;
  Transfers transfers(pair);
  transfers.send(collective_key(1), 1000);
  pair.run_for(heard + Duration::millis(2999) - pair.now());
  EXPECT_EQ(failures(pair), 0u);
  pair.run_for(Duration::millis(2));
  ASSERT_EQ(failures(pair), 1u);
  const base::Error error = pair.events_of<PeerFailed>(0)[0].error;
  EXPECT_EQ(error.code, base::ErrorCode::kPeerLost);
  EXPECT_NE(error.message.find("rank 1 (10.0.1.0:4000) is lost"), std::string::npos);
  EXPECT_EQ(pair.endpoint(0).last_heard_at(EndpointPair::rank(1)), heard);
  EXPECT_TRUE(pair.endpoint(0).is_drained());
  EXPECT_TRUE(pair.endpoint(0).poll_timeout().is_never());
  const size_t bursts = pair.bursts.size();
  pair.run_for(Duration::seconds(10));
  EXPECT_EQ(pair.bursts.size(), bursts) << "nothing is sent to the dead";
}

TEST(Connection, a_peer_that_only_receives_stays_alive) {
  EndpointPair pair;
  ASSERT_TRUE(pair.join());
  pair.node(1).matcher.dead_groups.insert(7);
  for (uint64_t i = 0; i < 2000; ++i) {
    pair.endpoint(0).post_send(EndpointPair::rank(1),
                               {collective_key(i), signature(), pattern(8), 0});
    pair.run_for(Duration::millis(10));
  }
  EXPECT_EQ(failures(pair), 0u);
}

TEST(Connection, goodbye_is_not_a_failure) {
  EndpointPair pair;
  ASSERT_TRUE(pair.join());
  Transfers transfers(pair);
  transfers.both(collective_key(1), kLarge);
  ASSERT_TRUE(transfers.run());
  for (int i = 0; i < kGoodbyeCopies; ++i) {
    pair.endpoint(0).post_goodbye();
    pair.turn();
  }
  pair.run_for(Duration::millis(10));
  ASSERT_EQ(pair.events_of<PeerLeft>(1).size(), 1u);
  EXPECT_EQ(failures(pair), 0u);
  const auto error = pair.endpoint(1).peer_error(EndpointPair::rank(0));
  ASSERT_TRUE(error.has_value());
  EXPECT_NE(error->message.find("has left the job"), std::string::npos);
  // What is posted for it from now on is forgotten at once.
  pair.endpoint(1).post_send(EndpointPair::rank(0),
                             {collective_key(9), signature(), pattern(8), 0});
  EXPECT_TRUE(pair.endpoint(1).is_drained());
}

// Node 1 has everything and leaves; the acks of node 0's last messages were all lost.
TEST(Connection, goodbye_repeats_the_acks_that_were_lost) {
  EndpointPair pair;
  ASSERT_TRUE(pair.join());
  bool lose_acks = true;
  pair.filter = [&lose_acks](Datagram& datagram) { return datagram.from != 1 || !lose_acks; };
  Transfers transfers(pair);
  transfers.both(collective_key(1), 100'000);
  // Its grant still gets through.
  lose_acks = false;
  pair.turn();
  lose_acks = true;
  ASSERT_TRUE(pair.run_until([&pair] { return !pair.events_of<ReceiveCompleted>(1).empty(); },
                             Duration::millis(5)));
  pair.run_for(Duration::millis(3));
  EXPECT_TRUE(pair.events_of<SendDelivered>(0).empty());
  lose_acks = false;
  pair.endpoint(1).post_goodbye();
  pair.run_for(Duration::millis(2));
  EXPECT_EQ(pair.events_of<SendDelivered>(0).size(), 1u);
  EXPECT_EQ(pair.events_of<PeerLeft>(0).size(), 1u);
}

TEST(Connection, whole_messages_of_a_peer_that_left_can_still_be_received) {
  EndpointPair pair;
  ASSERT_TRUE(pair.join());
  Transfers transfers(pair);
  transfers.send(collective_key(1), 1000);
  transfers.send(point_to_point_key(2), kLarge);  // announced, never granted
  pair.run_for(Duration::millis(5));
  const auto held = pair.node(1).matcher.held;
  ASSERT_EQ(held.size(), 2u);
  pair.endpoint(0).post_goodbye();
  pair.run_for(Duration::millis(5));
  ASSERT_TRUE(pair.endpoint(1).has_left(EndpointPair::rank(0)));
  for (const auto& one : held) {
    const bool is_whole = one.key == collective_key(1);
    EXPECT_EQ(pair.endpoint(1).has_message(EndpointPair::rank(0), one.message_id), is_whole);
  }
  transfers.receive(collective_key(1), 1000);
  transfers.receive(point_to_point_key(2), kLarge);  // in vain, and harmless
  pair.run_for(Duration::millis(5));
  EXPECT_EQ(pair.events_of<ReceiveCompleted>(1).size(), 1u);
  EXPECT_FALSE(pair.endpoint(0).has_left(EndpointPair::rank(1)));
}

TEST(Connection, abort_and_status_reach_the_peer) {
  EndpointPair pair;
  ASSERT_TRUE(pair.join());
  base::Random random(2);
  pair.filter = [&random](Datagram&) { return random.chance(0.5); };
  pair.endpoint(0).post_abort(EndpointPair::rank(1),
                              {7, static_cast<uint8_t>(base::ErrorCode::kMismatch), "rank 5 \n"});
  ASSERT_TRUE(pair.run_until([&pair] { return !pair.events_of<GroupAborted>(1).empty(); },
                             Duration::seconds(5)))
      << "aborts are resent until they arrive";
  const GroupAborted aborted = pair.events_of<GroupAborted>(1)[0];
  EXPECT_EQ(aborted.peer, EndpointPair::rank(0));
  EXPECT_EQ(aborted.group, 7u);
  EXPECT_EQ(aborted.error, (base::Error{base::ErrorCode::kMismatch, "rank 5 ?"}));

  pair.filter = nullptr;
  pair.endpoint(0).post_status(EndpointPair::rank(1), {7, 5, signature(), true});
  pair.run_for(Duration::millis(1));
  ASSERT_EQ(pair.events_of<StatusReceived>(1).size(), 1u);
  EXPECT_EQ(pair.events_of<StatusReceived>(1)[0].status.operation, 5u);
  EXPECT_TRUE(pair.events_of<StatusReceived>(1)[0].status.wants_answer);
}

TEST(Connection, withdrawn_operations_leave_the_link_usable) {
  EndpointPair pair;
  ASSERT_TRUE(pair.join());
  auto content = std::make_unique<ByteVector>(pattern(kLarge));
  auto sink = std::make_unique<BufferSink>(kLarge);
  pair.node(1).matcher.post(EndpointPair::rank(0), collective_key(1),
                            {5, sink.get(), kLarge, signature()});
  pair.endpoint(1).post_grant(EndpointPair::rank(0), collective_key(1), kLarge);
  pair.endpoint(0).post_send(EndpointPair::rank(1), {collective_key(1), signature(), *content, 6});
  pair.run_until([&sink] { return sink->placed() > 100'000; }, Duration::seconds(1));
  ASSERT_LT(sink->placed(), kLarge);
  // Both sides give up and their memory goes away; the sanitizers watch.
  pair.endpoint(0).withdraw_send(EndpointPair::rank(1), 6);
  pair.endpoint(1).withdraw_receive(EndpointPair::rank(0), 5);
  content.reset();
  sink.reset();
  pair.endpoint(0).drop_group(7);
  pair.endpoint(1).drop_group(7);
  pair.run_for(Duration::millis(50));
  EXPECT_TRUE(pair.endpoint(0).is_drained());
  Transfers transfers(pair);
  transfers.both(collective_key(1, 0, 8), kLarge);
  ASSERT_TRUE(pair.run_until([&pair] { return pair.events_of<SendDelivered>(0).size() == 1; },
                             Duration::seconds(1)));
  EXPECT_TRUE(transfers.is_intact());
}

TEST(Connection, keys_change_under_load_without_a_stall) {
  PairOptions options;
  options.generation_bits = 4;
  EndpointPair pair(options);
  ASSERT_TRUE(pair.join());
  Transfers transfers(pair);
  transfers.both(collective_key(1), kLarge);
  ASSERT_TRUE(transfers.run());
  EXPECT_TRUE(transfers.is_intact());
  EXPECT_EQ(pair.all_drops(1), 0u);
  for (const PathReport& path : pair.paths(0, 1)) EXPECT_GT(path.packets_sealed, 3u << 4);
}

// --- A peer that breaks the protocol under valid keys: an error, never a crash ---

class RogueTest : public testing::Test {
 protected:
  void SetUp() override {
    rogue_.introduce();
    rogue_.say_frame(wire::ConfirmFrame{77});
    ASSERT_EQ(failures(pair_), 0u);
  }
  static wire::DataFrame data(uint64_t id, base::Bytes bytes) {
    wire::DataFrame frame;
    frame.key = collective_key(id);
    frame.message_id = id;
    frame.message_length = bytes.size();
    frame.signature = signature();
    frame.is_eager = true;
    frame.bytes = bytes;
    return frame;
  }
  std::string failure() {
    const auto failed = pair_.events_of<PeerFailed>(0);
    return failed.size() == 1 ? failed[0].error.message : "";
  }

  EndpointPair pair_;
  RoguePeer rogue_{pair_, 0};
};

TEST_F(RogueTest, malformed_frames) {
  rogue_.say(ByteVector{0xFF});
  EXPECT_NE(failure().find("breaks the protocol"), std::string::npos);
  EXPECT_EQ(pair_.endpoint(0).drops().malformed, 1u);
  rogue_.say_frame(wire::PingFrame{});
  EXPECT_EQ(pair_.endpoint(0).drops().peer_closed, 1u);
}

TEST_F(RogueTest, an_empty_packet_and_padding_are_fine) {
  rogue_.say({});
  rogue_.say(ByteVector(1000));
  EXPECT_EQ(failure(), "");
  EXPECT_EQ(pair_.endpoint(0).drops().malformed, 0u);
}

TEST_F(RogueTest, ack_of_a_packet_that_was_never_sent) {
  rogue_.say_frame(wire::AckFrame{base::PathId::from_sockets(0, 0), 1000, 0, 0, {}});
  EXPECT_NE(failure(), "");
}

TEST_F(RogueTest, ack_of_a_path_that_does_not_exist) {
  rogue_.say_frame(wire::AckFrame{base::PathId::from_sockets(9, 9), 0, 0, 0, {}});
  EXPECT_NE(failure(), "");
}

TEST_F(RogueTest, data_on_a_path_that_was_not_confirmed) {
  const ByteVector bytes = pattern(16);
  rogue_.say_data(data(0, bytes), /*own_socket=*/1, /*their_socket=*/1);
  EXPECT_EQ(pair_.endpoint(0).drops().unconfirmed, 1u);
  EXPECT_TRUE(pair_.node(0).matcher.held.empty());
  EXPECT_NE(failure(), "");
}

TEST_F(RogueTest, overdrawn_credit) {
  const ByteVector bytes = pattern(8000);
  for (uint64_t id = 0; id < 200 && failure().empty(); ++id) rogue_.say_data(data(id, bytes));
  EXPECT_NE(failure().find("credit"), std::string::npos) << failure();
}

TEST_F(RogueTest, a_split_element) {
  const ByteVector bytes = pattern(17);
  wire::DataFrame frame = data(0, bytes);
  frame.message_length = 100;
  rogue_.say_data(frame);
  EXPECT_NE(failure(), "");
}

TEST_F(RogueTest, echoes_of_challenges_that_were_never_sent) {
  for (const uint64_t challenge : {0u, 1u, 77u}) {
    rogue_.say_frame(wire::ConfirmEchoFrame{challenge});
  }
  EXPECT_EQ(failure(), "");
  for (const PathReport& path : pair_.paths(0, EndpointPair::kRogue)) {
    EXPECT_EQ(path.state, PathState::kValidating);
  }
}

TEST_F(RogueTest, a_flood_of_status_requests_is_bounded) {
  // It asks and never acknowledges; a collective room would answer each.
  for (int i = 0; i < 1000; ++i) {
    rogue_.say_frame(wire::StatusFrame{7, 1, signature(), true});
    for (int n = 0; n < 200 && failure().empty(); ++n) {
      pair_.endpoint(0).post_status(EndpointPair::rank(EndpointPair::kRogue), {7, 1, {}, false});
    }
    pair_.turn();
    if (!failure().empty()) break;
  }
  EXPECT_NE(failure().find("acknowledges nothing"), std::string::npos);
}

}  // namespace
}  // namespace securefabric::transport
