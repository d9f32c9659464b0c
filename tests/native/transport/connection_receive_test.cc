// What a connection makes of loss, and of a peer that breaks the protocol.
#include "transport/connection.h"

#include <gtest/gtest.h>

#include "transfers.h"

namespace securefabric::transport {
namespace {

using base::Duration;

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

TEST(Connection, the_last_packet_is_lost_and_a_tail_probe_finds_out) {
  EndpointPair pair;
  ASSERT_TRUE(pair.join());
  bool drop_all = true;
  pair.filter = [&drop_all](Datagram& datagram) { return datagram.from != 0 || !drop_all; };
  Transfers transfers(pair);
  transfers.both(collective_key(1), 100);
  pair.turn();
  drop_all = false;
  ASSERT_TRUE(transfers.run(kPtoMin / 2));
  EXPECT_EQ(pair.endpoint(0).traffic().tail_probes, 1u);
  EXPECT_EQ(pair.endpoint(0).traffic().probe_timeouts, 0u);
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
  const uint64_t enough = 2 * kEagerWindow / bytes.size();
  for (uint64_t id = 0; id < enough && failure().empty(); ++id) rogue_.say_data(data(id, bytes));
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
  ASSERT_EQ(failure(), "");
  uint64_t answers = 0;
  for (int i = 0; i < 1000; ++i) {
    rogue_.say_frame(wire::StatusFrame{7, 1, signature(), true});
    for (int n = 0; n < 200; ++n) {
      pair_.endpoint(0).post_status(EndpointPair::rank(EndpointPair::kRogue), {7, 1, {}, false});
      ++answers;
    }
    ASSERT_LE(pair_.endpoint(0).control_frames(EndpointPair::rank(EndpointPair::kRogue)),
              kControlFramesBusy);
  }
  EXPECT_GT(answers, kControlFramesBusy);
}

}  // namespace
}  // namespace securefabric::transport
