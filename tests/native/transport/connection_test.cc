// Two ranks that meet, stay and part: joining, liveness, leaving.
#include "transport/connection.h"

#include <gtest/gtest.h>

#include <deque>

#include "transfers.h"
#include "wire/decode.h"

namespace securefabric::transport {
namespace {

using base::Duration;

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

TEST(Connection, paths_join_sockets_of_the_same_family) {
  constexpr auto kIpv4 = base::AddressFamily::kIpv4;
  constexpr auto kIpv6 = base::AddressFamily::kIpv6;
  PairOptions options;
  options.families = {{{kIpv4, kIpv6}, {kIpv6, kIpv4}}};
  EndpointPair pair(options);
  for (const size_t from : {0u, 1u}) {
    pair.endpoint(from).require_peer(EndpointPair::rank(1 - from), pair.now());
  }
  pair.run_for(Duration::seconds(1));
  for (const size_t from : {0u, 1u}) {
    EXPECT_EQ(pair.active_paths(from, 1 - from), 2u);
    ASSERT_EQ(pair.paths(from, 1 - from).size(), 2u) << "nothing is asked that cannot answer";
    for (const PathReport& path : pair.paths(from, 1 - from)) {
      EXPECT_NE(path.id.sender_socket(), path.id.receiver_socket());
    }
  }
}

TEST(Connection, no_family_in_common_and_the_error_says_so) {
  constexpr auto kIpv6 = base::AddressFamily::kIpv6;
  PairOptions options;
  options.families[1] = {kIpv6, kIpv6};
  EndpointPair pair(options);
  pair.endpoint(0).require_peer(EndpointPair::rank(1), pair.now());
  pair.run_for(Duration::millis(1));
  const auto failed = pair.events_of<PeerFailed>(0);
  ASSERT_EQ(failed.size(), 1u) << "at once, not after the join timeout";
  EXPECT_EQ(failed[0].error.code, base::ErrorCode::kConfig);
  EXPECT_NE(failed[0].error.message.find("rank 1"), std::string::npos) << failed[0].error.message;
  EXPECT_NE(failed[0].error.message.find("IPv6"), std::string::npos) << failed[0].error.message;
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

// Whoever can tell the next challenge from those before can answer for an address that he does not
// have: so they are what the driver draws, and nothing else.
TEST(Connection, challenges_are_what_the_driver_draws) {
  EndpointPair pair;
  RoguePeer rogue(pair, 0);
  rogue.introduce();
  pair.run_for(Duration::millis(100));
  std::vector<uint64_t> challenges;
  for (const ByteVector& datagram : pair.rogue_inbox) {
    const ByteVector plaintext = rogue.open(datagram);
    wire::FrameDecoder decoder(plaintext);
    while (const auto frame = decoder.next()) {
      const auto* confirm = std::get_if<wire::ConfirmFrame>(&*frame);
      if (confirm != nullptr) challenges.push_back(confirm->challenge);
    }
  }
  ASSERT_GE(challenges.size(), 8u);
  for (size_t i = 0; i < challenges.size(); ++i) {
    EXPECT_EQ(challenges[i], EndpointPair::challenge(0, i));
  }
}

// A member lists addresses of somebody who has nothing to do with the job, and opens as many paths
// to them as there are: what that one gets is bounded.
TEST(Connection, addresses_that_never_answer_are_left_alone) {
  PairOptions options;
  options.sockets = 8;
  options.paths = 4;
  options.join_timeout = Duration::seconds(10'000);
  EndpointPair pair(options);
  RoguePeer rogue(pair, 0);
  rogue.introduce();
  uint64_t said = 0;
  const auto received = [&pair] {
    uint64_t bytes = 0;
    for (const ByteVector& datagram : pair.rogue_inbox) bytes += datagram.size();
    pair.rogue_inbox.clear();
    return bytes;
  };
  const auto confirm_everywhere = [&] {
    for (uint8_t own = 0; own < 8; ++own) {
      for (uint8_t theirs = 0; theirs < 8; ++theirs) {
        rogue.say_frame(wire::ConfirmFrame{1u + own * 8u + theirs}, own, theirs);
        rogue.say_frame(wire::PingFrame{}, own, theirs);
        said += 2 * 40 + 10;
      }
    }
  };
  confirm_everywhere();
  pair.run_for(Duration::seconds(100));
  EXPECT_LE(received(),
            options.paths * kUnansweredTries * kDatagramBytesMin + said + kDatagramBytesMin);
  pair.run_for(Duration::seconds(1000));
  EXPECT_EQ(received(), 0u) << "nobody wants that rank";
  said = 0;
  for (int i = 0; i < 100; ++i) {
    confirm_everywhere();
    pair.run_for(Duration::seconds(1));
  }
  EXPECT_LE(received(), said + kUnansweredCreditMax + kDatagramBytesMin) << "amplification";
  pair.endpoint(0).require_peer(EndpointPair::rank(2), pair.now());
  pair.run_for(Duration::seconds(60));
  (void)received();
  pair.run_for(Duration::seconds(1000));
  EXPECT_LE(received(), options.paths * 391 * kDatagramBytesMin) << "one in 2.6 seconds and path";
  EXPECT_EQ(pair.active_paths(0, 2), 0u);
}

// ... and who answers late is found all the same.
TEST(Connection, a_peer_that_nobody_wants_here_and_that_answers_late_is_linked) {
  EndpointPair pair;
  pair.node(1).is_paused = true;
  (void)pair.endpoint(0).install_peer(pair.node(1).description, pair.now());
  pair.run_for(Duration::seconds(100));
  EXPECT_LE(pair.bursts_of(0), 4 * kUnansweredTries);
  pair.node(1).is_paused = false;
  pair.endpoint(1).require_peer(EndpointPair::rank(0), pair.now());
  EXPECT_TRUE(pair.run_until([&pair] { return pair.is_joined(); }, Duration::seconds(1)));
}

TEST(Connection, joining_survives_the_loss_of_most_packets) {
  EndpointPair pair;
  base::Random random(3);
  pair.filter = [&random](Datagram&) { return random.chance(0.3); };
  pair.endpoint(0).require_peer(EndpointPair::rank(1), pair.now());
  const auto have_met = [&pair] {
    return pair.active_paths(0, 1) > 0 && pair.active_paths(1, 0) > 0;
  };
  EXPECT_TRUE(pair.run_until(have_met, Duration::seconds(20)));
  pair.run_for(Duration::seconds(30));
  EXPECT_EQ(failures(pair), 0u);
  pair.filter = nullptr;
  EXPECT_TRUE(pair.run_until([&pair] { return pair.is_joined(); }, kUnansweredIntervalMax));
}

TEST(Connection, the_error_says_what_the_host_said_before_it_guesses) {
  PairOptions options;
  options.join_timeout = Duration::seconds(5);
  EndpointPair pair(options);
  pair.node(1).is_paused = true;
  pair.endpoint(0).require_peer(EndpointPair::rank(1), pair.now());
  pair.run_for(Duration::millis(4999));
  const auto paths = pair.paths(0, 1);
  ASSERT_GT(paths.size(), 1u);
  for (const PathReport& path : paths) {
    pair.endpoint(0).note_send_error(EndpointPair::rank(1), path.id, "from here to there: no way");
  }
  pair.run_for(Duration::millis(2));
  ASSERT_EQ(failures(pair), 1u);
  const std::string message = pair.events_of<PeerFailed>(0)[0].error.message;
  EXPECT_NE(message.find("refused to send on " + std::to_string(paths.size()) + " of " +
                         std::to_string(paths.size()) + " paths: from here to there: no way"),
            std::string::npos)
      << message;
  EXPECT_EQ(message.find("firewall"), std::string::npos) << message;
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

// Everything that the peer has sealed and the network has held back, acks and answers to challenges
// among it, arrives bit by bit after its death.
TEST(Connection, packets_that_were_held_back_do_not_keep_a_dead_peer_alive) {
  PairOptions options;
  options.death_timeout = Duration::seconds(3);
  EndpointPair pair(options);
  ASSERT_TRUE(pair.join());
  std::deque<Datagram> held;
  pair.filter = [&held](Datagram& datagram) {
    if (datagram.from != 1) return true;
    held.push_back(datagram);
    return held.size() % 2 == 0;
  };
  pair.node(1).matcher.dead_groups.insert(7);
  for (uint64_t i = 0; i < 40; ++i) {
    for (const size_t from : {0u, 1u}) {
      pair.endpoint(from).post_send(EndpointPair::rank(1 - from),
                                    {collective_key(i), signature(), pattern(8), 0});
    }
    pair.run_for(Duration::millis(50));
  }
  pair.node(1).is_paused = true;  // dead
  ASSERT_EQ(failures(pair), 0u);
  const base::Instant died_at = pair.now();
  const uint64_t opened_before = pair.endpoint(0).traffic().packets_opened;
  ASSERT_GT(held.size(), 20u);
  while (failures(pair) == 0 && !held.empty()) {
    pair.inject(1, 0, held.front().socket, held.front().bytes);
    held.pop_front();
    pair.run_for(Duration::millis(500));
  }
  EXPECT_EQ(failures(pair), 1u);
  EXPECT_LE(pair.now() - died_at, options.death_timeout + Duration::millis(500));
  EXPECT_GT(pair.endpoint(0).traffic().packets_opened, opened_before) << "they did verify";
}

TEST(Connection, time_in_which_nobody_ran_is_no_silence) {
  PairOptions options;
  options.death_timeout = Duration::seconds(3);
  EndpointPair pair(options);
  ASSERT_TRUE(pair.join());
  pair.run_for(Duration::millis(1500));
  pair.node(0).is_busy = pair.node(1).is_busy = true;  // stopped, as the machine under them
  pair.run_for(Duration::seconds(60));
  pair.node(0).is_busy = pair.node(1).is_busy = false;
  pair.run_for(Duration::seconds(10));
  EXPECT_EQ(failures(pair), 0u);
  // The excuse holds for that time alone.
  pair.node(1).is_paused = true;
  pair.run_for(Duration::millis(1900));
  EXPECT_EQ(failures(pair), 0u);
  pair.run_for(Duration::millis(1200));
  EXPECT_EQ(failures(pair), 1u);
}

TEST(Connection, who_was_stopped_still_notices_that_a_peer_has_died) {
  PairOptions options;
  options.death_timeout = Duration::seconds(3);
  EndpointPair pair(options);
  ASSERT_TRUE(pair.join());
  pair.node(1).is_paused = true;
  pair.node(0).is_busy = true;
  pair.run_for(Duration::seconds(60));
  pair.node(0).is_busy = false;
  pair.run_for(Duration::millis(1900));
  EXPECT_EQ(failures(pair), 0u);
  pair.run_for(Duration::millis(2200));
  EXPECT_EQ(failures(pair), 1u);
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
  pair.endpoint(0).withdraw_group(EndpointPair::rank(1), 7);
  pair.endpoint(1).withdraw_group(EndpointPair::rank(0), 7);
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

// A receiver that runs ahead may have posted any number of large receives. The sender keeps so many
// grants of messages that it has not posted, and no more are out.
TEST(Connection, grants_beyond_what_a_sender_keeps_wait_for_the_first_to_end) {
  EndpointPair pair;
  ASSERT_TRUE(pair.join());
  Transfers transfers(pair);
  constexpr uint64_t kAll = 2 * kEarlyGrantsMax;
  for (uint64_t i = 0; i < kAll; ++i) {
    pair.endpoint(1).post_grant(EndpointPair::rank(0), collective_key(i), kLarge);
  }
  pair.run_for(Duration::seconds(5));
  ASSERT_EQ(pair.endpoint(0).peer_error(EndpointPair::rank(1)), std::nullopt);
  ASSERT_EQ(pair.endpoint(1).control_frames(EndpointPair::rank(0)), 0u);
  // The first one that waits goes out once one of the others is through.
  const ByteVector content = pattern(kLarge);
  const auto transfer = [&](uint64_t i) {
    BufferSink sink(kLarge);
    pair.node(1).matcher.post(EndpointPair::rank(0), collective_key(i),
                              {i, &sink, kLarge, signature()});
    pair.endpoint(0).post_send(EndpointPair::rank(1), {collective_key(i), signature(), content, i});
    EXPECT_TRUE(pair.run_until([&] { return sink.placed() == kLarge; }, Duration::seconds(1))) << i;
    EXPECT_EQ(sink.bytes(), content);
    pair.run_for(Duration::millis(10));
  };
  transfer(17);
  transfer(kGrantsOutstandingMax);
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

}  // namespace
}  // namespace securefabric::transport
