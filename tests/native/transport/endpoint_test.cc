// What arrives from strangers and attackers: dropped, counted by cause, never answered.
#include "transport/endpoint.h"

#include <gtest/gtest.h>
#include <malloc.h>

#include "transfers.h"

namespace securefabric::transport {
namespace {

using base::Duration;

class EndpointTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(pair_.join()); }

  // Everything that node 0 might do by itself (heartbeats) is far away: what it sends now would be
  // an answer.
  void expect_dropped(const ByteVector& datagram, uint64_t DropCounters::* counter,
                      uint8_t socket = 0) {
    pair_.run_for(Duration::millis(5));  // what was on its way
    const uint64_t drops_before = pair_.all_drops(0);
    const uint64_t count_before = pair_.endpoint(0).drops().*counter;
    const size_t bursts_before = pair_.bursts_of(0);
    const size_t events_before = pair_.node(0).events.size();
    const uint64_t opened_before = pair_.endpoint(0).traffic().packets_opened;
    pair_.inject(1, 0, socket, datagram);
    pair_.run_for(Duration::millis(5));
    EXPECT_EQ(pair_.endpoint(0).drops().*counter, count_before + 1);
    EXPECT_EQ(pair_.all_drops(0), drops_before + 1) << "one cause each";
    EXPECT_EQ(pair_.bursts_of(0), bursts_before) << "it was answered";
    EXPECT_EQ(pair_.node(0).events.size(), events_before);
    EXPECT_EQ(pair_.endpoint(0).traffic().packets_opened, opened_before);
  }

  // A datagram of node 1 for socket 0 of node 0 that has not arrived: taken off the wire.
  ByteVector capture() {
    ByteVector captured;
    pair_.filter = [&captured](Datagram& datagram) {
      if (datagram.to != 0 || datagram.socket != 0 || !captured.empty()) return true;
      captured = datagram.bytes;
      return false;
    };
    const auto is_captured = [&captured] { return !captured.empty(); };
    for (uint64_t i = 0; !is_captured() && i < 16; ++i) {
      pair_.endpoint(1).post_send(EndpointPair::rank(0),
                                  {collective_key(1000 + i), signature(), pattern(100), 0});
      pair_.run_for(Duration::micros(1));
    }
    pair_.filter = nullptr;
    SF_CHECK(is_captured());
    pair_.run_for(Duration::millis(5));
    pair_.node(1).is_paused = true;  // it would send the captured data again
    return captured;
  }

  static PairOptions quiet() {
    PairOptions options;
    options.heartbeat = options.death_timeout = Duration::seconds(10'000);
    return options;
  }
  EndpointPair pair_{quiet()};
};

TEST_F(EndpointTest, handle_datagram__too_short) {
  expect_dropped({}, &DropCounters::too_short);
  ByteVector short_one = capture();
  short_one.resize(31);
  expect_dropped(short_one, &DropCounters::too_short);
}

TEST_F(EndpointTest, handle_datagram__bad_version_or_flags) {
  ByteVector datagram = capture();
  datagram[0] = 0x21;
  expect_dropped(datagram, &DropCounters::bad_version);
  datagram[0] = 0x12;
  expect_dropped(datagram, &DropCounters::bad_version);
  datagram[0] = wire::kVersionAndClass;
  datagram[1] = 0x80;
  expect_dropped(datagram, &DropCounters::bad_version);
}

TEST_F(EndpointTest, handle_datagram__spi_outside_the_world) {
  ByteVector datagram = capture();
  for (const uint32_t spi : {0u, 0x0FFFu, 0x1003u, 0xFFFFFFFFu, 0x1000u /* our own rank */}) {
    base::ByteWriter(base::MutableBytes(datagram).subspan(4, 4)).u32(spi);
    expect_dropped(datagram, &DropCounters::unknown_spi);
  }
}

TEST_F(EndpointTest, handle_datagram__path_of_another_socket) {
  const ByteVector datagram = capture();
  expect_dropped(datagram, &DropCounters::path_mismatch, /*socket=*/1);
}

TEST_F(EndpointTest, handle_datagram__path_of_a_socket_the_peer_does_not_have) {
  ByteVector datagram = capture();
  datagram[2] = 2;  // of sockets 0 and 1
  expect_dropped(datagram, &DropCounters::path_mismatch);
  datagram[2] = 0xFF;
  expect_dropped(datagram, &DropCounters::path_mismatch);
}

TEST_F(EndpointTest, handle_datagram__every_tampered_byte) {
  const ByteVector datagram = capture();
  for (size_t i = 8; i < datagram.size(); i += i < 16 ? 1 : 7) {
    ByteVector tampered = datagram;
    tampered[i] ^= 0x10;
    const bool is_number = i < 16;
    if (!is_number) {
      expect_dropped(tampered, &DropCounters::auth_failed);
      continue;
    }
    // A damaged packet number names another generation, another nonce, or no number at all.
    const uint64_t before = pair_.all_drops(0);
    const size_t bursts_before = pair_.bursts_of(0);
    pair_.inject(1, 0, 0, tampered);
    pair_.run_for(Duration::millis(5));
    EXPECT_EQ(pair_.all_drops(0), before + 1) << i;
    EXPECT_EQ(pair_.bursts_of(0), bursts_before);
  }
  // Nothing of that has moved any state: the true packet still opens.
  const uint64_t drops_before = pair_.all_drops(0);
  pair_.inject(1, 0, 0, datagram);
  pair_.run_for(Duration::millis(1));
  EXPECT_EQ(pair_.all_drops(0), drops_before);
}

TEST_F(EndpointTest, handle_datagram__truncated_and_extended) {
  const ByteVector datagram = capture();
  ByteVector truncated = datagram;
  truncated.pop_back();
  expect_dropped(truncated, &DropCounters::auth_failed);
  ByteVector extended = datagram;
  extended.push_back(0);
  expect_dropped(extended, &DropCounters::auth_failed);
  extended.resize(65'507);
  expect_dropped(extended, &DropCounters::auth_failed);
}

TEST_F(EndpointTest, handle_datagram__packet_number_of_another_generation) {
  ByteVector datagram = capture();
  const auto set_number = [&datagram](uint64_t number) {
    base::ByteWriter(base::MutableBytes(datagram).subspan(8, 8)).u64(number);
  };
  set_number(uint64_t{2} << 22);
  expect_dropped(datagram, &DropCounters::future_generation);
  set_number(uint64_t{1} << 22);  // the next generation is tried, and fails
  expect_dropped(datagram, &DropCounters::auth_failed);
  set_number(crypto::kPacketNumberEnd);
  expect_dropped(datagram, &DropCounters::packet_limit);
  set_number(UINT64_MAX);
  expect_dropped(datagram, &DropCounters::packet_limit);
}

TEST_F(EndpointTest, handle_datagram__replayed) {
  const ByteVector datagram = capture();
  pair_.inject(1, 0, 0, datagram);
  pair_.run_for(Duration::millis(5));
  const auto held = pair_.node(0).matcher.held.size();
  expect_dropped(datagram, &DropCounters::replay_duplicate);
  expect_dropped(datagram, &DropCounters::replay_duplicate);
  EXPECT_EQ(pair_.node(0).matcher.held.size(), held);
}

TEST_F(EndpointTest, handle_datagram__reflected) {
  ByteVector own;
  pair_.filter = [&own](Datagram& datagram) {
    if (datagram.from == 0 && own.empty()) own = datagram.bytes;
    return true;
  };
  pair_.endpoint(0).post_send(EndpointPair::rank(1),
                              {collective_key(1), signature(), pattern(100), 0});
  pair_.run_for(Duration::millis(5));
  ASSERT_FALSE(own.empty());
  // Even under an SPI of ours: keys of the other direction.
  base::ByteWriter(base::MutableBytes(own).subspan(4, 4)).u32(0x1001);
  wire::Header header;
  ASSERT_EQ(wire::decode_header(own, header), wire::HeaderStatus::kOk);
  own[8] = 0;
  own[15] = 0xF0;  // a number that was not used yet
  expect_dropped(own, &DropCounters::auth_failed, header.path.receiver_socket());
}

TEST_F(EndpointTest, handle_datagram__random_junk) {
  pair_.answers_lookups = false;
  for (uint64_t seed = 0; seed < 2000; ++seed) {
    base::Random random(seed);
    ByteVector junk(random.below(200));
    random.fill(junk);
    if (random.chance(0.7) && junk.size() >= 16) {
      wire::encode_header(
          {base::PathId{static_cast<uint16_t>(random.below(0x400))},
           base::Spi{static_cast<uint32_t>(0x1000 + random.below(4))}, random.below(100)},
          junk);
    }
    const uint64_t before = pair_.all_drops(0);
    pair_.inject(1, 0, static_cast<uint8_t>(random.below(2)), junk);
    pair_.turn();
    ASSERT_EQ(pair_.all_drops(0), before + 1) << "seed " << seed;
  }
  EXPECT_TRUE(pair_.rogue_inbox.empty());
  const size_t bursts_before = pair_.bursts_of(0);
  pair_.run_for(Duration::millis(100));
  EXPECT_EQ(pair_.bursts_of(0), bursts_before) << "junk was answered";
  // And the connection still works.
  pair_.endpoint(1).post_send(EndpointPair::rank(0),
                              {collective_key(1), signature(), pattern(100), 0});
  pair_.run_for(Duration::millis(5));
  EXPECT_EQ(pair_.node(0).matcher.held.size(), 1u);
}

TEST_F(EndpointTest, handle_datagram__stranger_with_a_reserved_spi_causes_rare_lookups_only) {
  pair_.answers_lookups = false;
  RoguePeer rogue(pair_, 0);
  const size_t lookups_before = pair_.node(0).lookups;
  for (int i = 0; i < 1000; ++i) {
    rogue.say_frame(wire::ConfirmFrame{1});
    pair_.run_for(Duration::millis(2));
  }
  // Two seconds, ten each, and perhaps one at the end.
  EXPECT_GE(pair_.node(0).lookups - lookups_before, 19u);
  EXPECT_LE(pair_.node(0).lookups - lookups_before, 21u);
  EXPECT_EQ(pair_.endpoint(0).drops().unknown_spi, 1000u);
  EXPECT_TRUE(pair_.rogue_inbox.empty());
}

TEST_F(EndpointTest, handle_datagram__hint_brings_an_honest_latecomer_in) {
  RoguePeer late(pair_, 0);
  late.say_frame(wire::ConfirmFrame{77});
  EXPECT_EQ(pair_.endpoint(0).drops().unknown_spi, 1u);
  late.say_frame(wire::ConfirmFrame{77});  // repeated, as it would be
  pair_.run_for(Duration::millis(2));
  bool was_echoed = false;
  for (const ByteVector& datagram : pair_.rogue_inbox) {
    const ByteVector plaintext = late.open(datagram);
    ASSERT_FALSE(plaintext.empty());
    was_echoed |= plaintext[0] == static_cast<uint8_t>(wire::FrameType::kConfirmEcho);
  }
  EXPECT_TRUE(was_echoed);
}

TEST_F(EndpointTest, handle_datagram__for_a_peer_that_has_left) {
  const ByteVector datagram = capture();
  pair_.node(1).is_paused = false;
  pair_.endpoint(1).post_goodbye();
  pair_.run_for(Duration::millis(5));
  pair_.node(1).is_paused = true;
  ASSERT_EQ(pair_.events_of<PeerLeft>(0).size(), 1u);
  expect_dropped(datagram, &DropCounters::peer_closed);
}

TEST(Endpoint, handle_datagram__keys_behind_the_window_and_generations_behind) {
  PairOptions options;
  options.sockets = 1;
  options.paths = 1;
  options.generation_bits = 14;  // longer than the replay window
  EndpointPair pair(options);
  ASSERT_TRUE(pair.join());
  ByteVector first;
  pair.filter = [&first](Datagram& datagram) {
    if (datagram.to != 0 || !first.empty()) return true;
    first = datagram.bytes;
    return false;
  };
  const auto send_many = [&pair](int count) {
    for (int i = 0; i < count; ++i) {
      pair.endpoint(1).post_send(EndpointPair::rank(0),
                                 {collective_key(1, 0, 99), signature(), pattern(8), 0});
      pair.run_for(Duration::micros(200));
    }
  };
  pair.node(0).matcher.dead_groups.insert(99);
  send_many(9000);
  ASSERT_FALSE(first.empty());
  pair.inject(1, 0, 0, first);
  pair.run_for(Duration::millis(1));
  EXPECT_EQ(pair.endpoint(0).drops().replay_too_old, 1u);
  send_many(2 << 14);
  pair.inject(1, 0, 0, first);
  pair.run_for(Duration::millis(1));
  EXPECT_EQ(pair.endpoint(0).drops().stale_generation, 1u);
  EXPECT_TRUE(pair.events_of<PeerFailed>(0).empty()) << "two key changes went unnoticed";
}

// --- Hints: somebody uses the SPI of a rank that is not known yet ---

// What a stranger can make of what he sees: a header that fits, and noise.
ByteVector junk_for(EndpointPair& pair, size_t victim, uint32_t as_rank, base::PathId path) {
  ByteVector datagram(64, 0xAB);
  const base::Spi base = pair.node(victim).description.spi_base;
  wire::encode_header({path, base::Spi{base.value + as_rank}, 5}, datagram);
  return datagram;
}

void send_junk(EndpointPair& pair, size_t victim) {
  for (uint32_t rank = 0; rank < EndpointPair::kWorldSize; ++rank) {
    for (uint8_t theirs = 0; theirs < pair.options().sockets; ++theirs) {
      for (uint8_t ours = 0; ours < pair.options().sockets; ++ours) {
        const auto path = base::PathId::from_sockets(theirs, ours);
        pair.inject(1, victim, ours, junk_for(pair, victim, rank, path));
      }
    }
  }
  pair.turn();
}

TEST(Endpoint, hint__of_a_stranger_leads_to_one_look_up_for_each_rank_and_to_no_word) {
  EndpointPair pair;
  for (int i = 0; i < 1000; ++i) {
    send_junk(pair, 0);
    pair.run_for(Duration::millis(100));
  }
  EXPECT_EQ(pair.node(0).lookups, 2u) << "of ranks 1 and 2";
  EXPECT_GT(pair.endpoint(0).drops().auth_failed, 1000u) << "and it knows them";
  EXPECT_EQ(pair.bursts_of(0), 0u);
  EXPECT_EQ(failures(pair), 0u);
  for (const auto& [rank, paths] : pair.endpoint(0).paths()) EXPECT_TRUE(paths.empty());
  EXPECT_TRUE(pair.endpoint(0).poll_timeout().is_never());
  EXPECT_TRUE(pair.endpoint(0).is_drained());
  // Nor does what is said to everybody with a link make it talk to them.
  pair.endpoint(0).post_abort(EndpointPair::rank(1), {7, 0, "over"});
  pair.endpoint(0).post_status(EndpointPair::rank(1), {7, 5, signature(), true});
  pair.endpoint(0).post_goodbye();
  pair.run_for(Duration::seconds(5));
  EXPECT_EQ(pair.bursts_of(0), 0u);
}

TEST(Endpoint, hint__without_an_entry_is_followed_now_and_then_and_ranks_take_turns) {
  EndpointPair pair;
  pair.answers_lookups = false;
  size_t junk = 0;
  for (; pair.node(0).lookups < 20 && junk < 10'000; ++junk) {
    // Rank 2 is named a hundred times as often as rank 1.
    const uint32_t rank = junk % 100 == 0 ? 1 : 2;
    pair.inject(1, 0, 0, junk_for(pair, 0, rank, base::PathId::from_sockets(0, 0)));
    pair.run_for(Duration::millis(1));
  }
  EXPECT_GE(junk, 1'800u) << "ten a second";
  EXPECT_LE(junk, 2'100u);
  EXPECT_GE(pair.node(0).lookups_of[1], 8u);
  EXPECT_GE(pair.node(0).lookups_of[2], 8u);
}

TEST(Endpoint, hint__then_the_peer_is_wanted_and_linked_at_once) {
  EndpointPair pair;
  send_junk(pair, 0);
  send_junk(pair, 1);
  ASSERT_EQ(pair.node(0).lookups_of[1], 1u);
  pair.run_for(kJoinTimeoutDefault * 2);
  pair.endpoint(0).require_peer(EndpointPair::rank(1), pair.now());
  EXPECT_TRUE(pair.run_until([&pair] { return pair.is_joined(); }, Duration::millis(50)));
  EXPECT_EQ(pair.node(1).lookups_of[0], 1u) << "it knew us, and heard us";
}

TEST(Endpoint, hint__at_an_entry_that_cannot_be_used_is_an_error_when_somebody_wants_it) {
  EndpointPair pair;
  pair.node(1).description.public_key.assign(32, 0);
  for (int i = 0; i < 10; ++i) {
    send_junk(pair, 0);
    pair.run_for(Duration::seconds(1));
  }
  EXPECT_EQ(failures(pair), 0u);
  EXPECT_EQ(pair.endpoint(0).peer_error(EndpointPair::rank(1)), std::nullopt);
  pair.endpoint(0).require_peer(EndpointPair::rank(1), pair.now());
  pair.run_for(Duration::millis(1));
  EXPECT_EQ(failures(pair), 1u);
}

// Keys of a path are made to find out whether a packet is the peer's. They are not kept if it is
// not.
TEST(Endpoint, junk_on_every_path_takes_no_secret_memory) {
  PairOptions options;
  options.sockets = 32;
  EndpointPair pair(options);
  ASSERT_TRUE(pair.join());
  send_junk(pair, 0);  // now it knows rank 2 as well
  const std::string before = crypto::secret_memory_status();
  const uint64_t failed_before = pair.endpoint(0).drops().auth_failed;
  send_junk(pair, 0);
  EXPECT_EQ(pair.endpoint(0).drops().auth_failed - failed_before, 2u * 32 * 32)
      << "of ranks 1, which is linked, and 2, which is known";
  EXPECT_EQ(crypto::secret_memory_status(), before);
}

TEST(Endpoint, install_peer__another_incarnation_is_refused) {
  EndpointPair pair;
  ASSERT_TRUE(pair.join());
  PeerDescription again = pair.node(1).description;
  EXPECT_TRUE(pair.endpoint(0).install_peer(again, pair.now()).ok());
  again.boot_id[0] ^= 1;
  const base::Status status = pair.endpoint(0).install_peer(again, pair.now());
  ASSERT_FALSE(status.ok());
  EXPECT_NE(status.error().message.find("rank 1 was restarted"), std::string::npos);
}

TEST(Endpoint, install_peer__unusable_entries_fail_the_peer) {
  const auto fails = [](auto&& damage) {
    EndpointPair pair;
    PeerDescription peer = pair.node(1).description;
    damage(peer);
    const bool was_refused = !pair.endpoint(0).install_peer(peer, pair.now()).ok();
    pair.run_for(Duration::millis(100));
    return was_refused && pair.events_of<PeerFailed>(0).size() == 1 && pair.bursts.empty();
  };
  EXPECT_TRUE(fails([](PeerDescription& peer) { peer.addresses.clear(); }));
  EXPECT_TRUE(fails(
      [](PeerDescription& peer) { peer.addresses.resize(kSocketsMax + 1, peer.addresses[0]); }));
  EXPECT_TRUE(fails([](PeerDescription& peer) { peer.datagram_bytes_max = 10; }));
  EXPECT_TRUE(fails([](PeerDescription& peer) { peer.public_key.assign(32, 0); }));
  EXPECT_TRUE(fails([](PeerDescription& peer) { peer.public_key.pop_back(); }));
}

TEST(Endpoint, fail_peer__is_reported_and_final) {
  EndpointPair pair;
  pair.answers_lookups = false;
  pair.endpoint(0).require_peer(EndpointPair::rank(1), pair.now());
  pair.endpoint(0).post_send(EndpointPair::rank(1),
                             {collective_key(1), signature(), pattern(10), 0});
  EXPECT_FALSE(pair.endpoint(0).is_drained());
  pair.endpoint(0).fail_peer(EndpointPair::rank(1), {base::ErrorCode::kAuth, "forged entry"},
                             pair.now());
  pair.run_for(Duration::millis(1));
  const auto failed = pair.events_of<PeerFailed>(0);
  ASSERT_EQ(failed.size(), 1u);
  EXPECT_EQ(failed[0].error.message, "forged entry");
  EXPECT_EQ(pair.endpoint(0).peer_error(EndpointPair::rank(1)), failed[0].error);
  EXPECT_TRUE(pair.endpoint(0).is_drained());
  EXPECT_EQ(pair.endpoint(0).last_heard_at(EndpointPair::rank(1)), std::nullopt);
  EXPECT_TRUE(pair.endpoint(0).install_peer(pair.node(1).description, pair.now()).ok());
  pair.run_for(Duration::seconds(100));
  EXPECT_TRUE(pair.bursts.empty());
  EXPECT_EQ(pair.events_of<PeerFailed>(0).size(), 1u);
}

TEST_F(EndpointTest, wipe__ends_all_links) {
  const ByteVector datagram = capture();
  pair_.answers_lookups = false;
  Endpoint& endpoint = pair_.endpoint(0);
  const uint64_t strangers = endpoint.drops().unknown_spi;
  endpoint.wipe();
  pair_.inject(1, 0, 0, datagram);
  pair_.run_for(Duration::seconds(100));
  EXPECT_EQ(endpoint.drops().unknown_spi, strangers + 1);
  EXPECT_TRUE(endpoint.paths().empty());
  EXPECT_TRUE(endpoint.is_drained());
  EXPECT_TRUE(endpoint.poll_timeout().is_never());
}

TEST(Endpoint, poll_timeout__never_while_nothing_is_wanted) {
  EndpointPair pair;
  pair.turn();
  EXPECT_TRUE(pair.endpoint(0).poll_timeout().is_never());
}

TEST(EndpointDeathTest, handle_timeout__time_that_runs_backwards_is_our_bug) {
  EndpointPair pair;
  pair.endpoint(0).handle_timeout(base::Instant::from_nanos(10));
  EXPECT_DEATH(pair.endpoint(0).handle_timeout(base::Instant::from_nanos(9)), "backwards");
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kHasPlainMalloc = false;
#else
constexpr bool kHasPlainMalloc = true;
#endif

// Sockets belong to the fabric, not to peers; what a peer costs is memory. (Secrets live in an
// arena of their own and come to a few KB.)
TEST(EndpointMemory, an_idle_peer_takes_at_most_64_KB) {
  if (!kHasPlainMalloc) GTEST_SKIP() << "a sanitizer's malloc does not say what is in use";
  PairOptions options;
  options.sockets = 3;
  options.paths = 8;
  EndpointPair pair(options);
  const size_t before = ::mallinfo2().uordblks;
  ASSERT_TRUE(pair.join());
  ByteVector bytes = pattern(100'000);
  {
    BufferSink sink(bytes.size());
    pair.node(1).matcher.post(EndpointPair::rank(0), collective_key(1),
                              {1, &sink, bytes.size(), signature()});
    pair.endpoint(1).post_grant(EndpointPair::rank(0), collective_key(1), bytes.size());
    pair.endpoint(0).post_send(EndpointPair::rank(1), {collective_key(1), signature(), bytes, 1});
    pair.run_for(Duration::seconds(3));
    ASSERT_EQ(sink.bytes(), bytes);
  }
  // What the test holds goes. (Assigning {} would keep the capacity.)
  bytes = ByteVector();
  pair.bursts = std::vector<EndpointPair::Burst>();
  for (size_t i = 0; i < 2; ++i) pair.node(i).events = std::vector<Event>();
  const size_t taken = ::mallinfo2().uordblks - before;
  RecordProperty("bytes_per_peer", std::to_string(taken / 2));
  EXPECT_LE(taken / 2, 64u * 1024);
}

}  // namespace
}  // namespace securefabric::transport
