#include "transport/path.h"

#include <gtest/gtest.h>

#include <deque>

#include "endpoint_pair.h"

namespace securefabric::transport {
namespace {

using base::Duration;
using base::Instant;

SendingPath make_path(size_t datagram_bytes_max = kDatagramBytesJumbo) {
  const base::PathId id = base::PathId::from_sockets(0, 1);
  crypto::PathSealer sealer(EndpointPair::aead(), EndpointPair::secret(1), id, 22);
  return {id, EndpointPair::address(1, 1), std::move(sealer), datagram_bytes_max};
}

Instant at(int64_t millis) {
  return Instant::from_nanos(millis * 1'000'000);
}

Instant us(int64_t micros) {
  return Instant::from_nanos(micros * 1000);
}

SentPacket sent(Instant when, uint32_t bytes) {
  SentPacket packet;
  packet.sent_at = when;
  packet.bytes = bytes;
  packet.is_ack_eliciting = true;
  return packet;
}

TEST(SendingPath, probe_deadline__only_while_something_is_in_flight) {
  SendingPath path = make_path();
  EXPECT_TRUE(path.probe_deadline().is_never());
  path.sent.on_sent(0, sent(at(5), 100));
  EXPECT_EQ(path.probe_deadline(), at(5) + kInitialRtt * 2 + kAckDelayMax);
}

TEST(SendingPath, probe_deadline__asks_judges_then_doubles_up_to_the_ceiling) {
  SendingPath path = make_path();
  path.rtt.on_sample(Duration::micros(10), Duration());
  path.sent.on_sent(0, sent(at(0), 100));
  EXPECT_EQ(path.probe_deadline(), at(0) + path.rtt.tail_probe() + kAckDelayMax);
  path.asked_for_ack = true;
  EXPECT_EQ(path.probe_deadline(), at(0) + path.rtt.tail_probe()) << "the ack was to come at once";
  path.probe_count = 1;
  EXPECT_EQ(path.probe_deadline(), at(0) + path.rtt.tail_probe());
  path.probe_count = 2;
  EXPECT_EQ(path.probe_deadline(), at(0) + kPtoMin);
  path.probe_count = 5;
  EXPECT_EQ(path.probe_deadline(), at(0) + kPtoMin * 8);
  path.probe_count = 4'000'000'000;
  EXPECT_EQ(path.probe_deadline(), at(0) + kPtoMax);
}

TEST(SendingPath, state_at__is_avoided_for_a_round_trip) {
  SendingPath path = make_path();
  path.rtt.on_sample(Duration::millis(4), Duration());
  path.avoid(at(10));
  EXPECT_EQ(path.state_at(at(10)), PathState::kValidating) << "it must be active to be avoided";
  path.state = PathState::kActive;
  EXPECT_EQ(path.state_at(at(13)), PathState::kAvoided);
  EXPECT_TRUE(path.is_active());
  EXPECT_EQ(path.state_at(at(14)), PathState::kActive);
}

TEST(SendingPath, on_sample__an_old_delay_is_not_averaged_with) {
  SendingPath path = make_path();
  path.on_sample(Duration::micros(8'000), Duration(), at(5'000));
  path.on_sample(Duration::micros(800), Duration(), at(5'999));
  EXPECT_EQ(path.rtt.delay(), Duration::micros(7'100));
  path.on_sample(Duration::micros(800), Duration(), at(6'999));
  EXPECT_EQ(path.rtt.delay(), Duration::micros(800));
  EXPECT_EQ(path.measured_at, at(6'999));
}

TEST(SendingPath, burst_bytes_max__several_make_a_window) {
  SendingPath path = make_path();
  EXPECT_EQ(path.burst_bytes_max(), kWindowInitial / 4);
  path.congestion.on_sent(4 * kBurstBytesMax, at(1));
  path.congestion.on_acked(4 * kBurstBytesMax, at(1));
  EXPECT_EQ(path.burst_bytes_max(), kBurstBytesMax);
  path.congestion.on_persistent_loss();
  EXPECT_EQ(path.burst_bytes_max(), kDatagramBytesJumbo);
}

// Loopback's packets are nearly as large as the first window.
TEST(SendingPath, has_room__for_several_of_the_largest_packets) {
  SendingPath path = make_path(kDatagramBytesMax);
  path.mtu.on_probe_acked(kDatagramBytesMax, at(0));
  path.congestion.on_packet_bytes(path.mtu.mtu());
  for (int i = 0; i < 4; ++i) {
    EXPECT_FALSE(path.is_paced());
    EXPECT_TRUE(path.has_room(at(1))) << i;
    path.on_sent(kDatagramBytesMax, at(1));
  }
  EXPECT_FALSE(path.has_room(at(1)));
}

TEST(SendingPath, has_room__an_empty_window_admits_one_packet) {
  SendingPath path = make_path();
  EXPECT_TRUE(path.has_room(at(1)));
  path.congestion.on_sent(kWindowInitial, at(1));
  EXPECT_FALSE(path.has_room(at(1)));
  path.congestion.on_discarded(kWindowInitial);
  path.congestion.on_sent(100 * kWindowInitial, at(1));
  path.congestion.on_discarded(100 * kWindowInitial);
  EXPECT_TRUE(path.has_room(at(1)));
}

// What goes out in a second is a window per round trip, be the window a quarter of a packet.
TEST(SendingPath, on_sent__small_windows_go_out_with_pauses) {
  for (const int64_t quarters : {1, 3, 4, 6, 11}) {
    SendingPath path = make_path();
    path.mtu.on_probe_acked(kDatagramBytesJumbo, us(0));
    path.rtt.on_sample(Duration::micros(1000), Duration());
    const auto window = static_cast<uint64_t>(quarters) * kDatagramBytesJumbo / 4;
    path.congestion.on_delay(Duration::micros(100), us(0), us(0));
    int64_t now_us = 1;
    while (path.congestion.window() > window) {  // a long queue shrinks it
      path.congestion.on_marked(1, 1, us(now_us), us(now_us));
      ++now_us;
    }
    const auto held = static_cast<int64_t>(path.congestion.window());
    std::deque<Instant> in_flight;
    int64_t sent = 0;
    for (const int64_t end_us = now_us + 1'000'000; now_us < end_us; now_us += 10) {
      while (!in_flight.empty() && in_flight.front() + Duration::micros(1000) <= us(now_us)) {
        path.congestion.on_discarded(kDatagramBytesJumbo);  // arrived; the window is to stay
        in_flight.pop_front();
      }
      if (!path.has_room(us(now_us))) continue;
      path.on_sent(kDatagramBytesJumbo, us(now_us));
      in_flight.push_back(us(now_us));
      ++sent;
    }
    const auto expected =
        static_cast<double>(held) * 1000 / static_cast<double>(kDatagramBytesJumbo);
    EXPECT_NEAR(static_cast<double>(sent), expected, expected / 50) << held;
  }
}

TEST(SendingPath, room_at__the_end_of_the_pause) {
  SendingPath path = make_path();
  EXPECT_TRUE(path.room_at(us(0)).is_never());
  path.rtt.on_sample(Duration::micros(1000), Duration());
  path.mtu.on_probe_acked(kDatagramBytesJumbo, us(0));
  path.congestion.on_persistent_loss();
  path.on_sent(kDatagramBytesJumbo, us(0));
  EXPECT_FALSE(path.has_room(us(499)));
  EXPECT_EQ(path.room_at(us(0)), us(500)) << "two packets in a round trip";
  EXPECT_TRUE(path.has_room(us(500)));
  EXPECT_TRUE(path.room_at(us(500)).is_never());
  path.on_sent(kDatagramBytesJumbo, us(500));
  EXPECT_TRUE(path.room_at(us(501)).is_never()) << "an ack has to come first";
  EXPECT_FALSE(path.has_room(us(2000)));
}

TEST(SendingPath, wants_ack_of_next__of_a_window_that_is_half_full_or_more) {
  SendingPath path = make_path();
  path.mtu.on_probe_acked(kDatagramBytesJumbo, us(0));
  EXPECT_FALSE(path.wants_ack_of_next(100)) << "small messages wait for something to ride on";
  path.on_sent(kDatagramBytesJumbo, us(1));
  EXPECT_FALSE(path.wants_ack_of_next(kDatagramBytesJumbo)) << "two of four packets are half";
  path.on_sent(kDatagramBytesJumbo, us(2));
  EXPECT_TRUE(path.wants_ack_of_next(kDatagramBytesJumbo)) << "three are more, and none has asked";
  EXPECT_FALSE(path.wants_ack_of_next(0)) << "that is half";
  path.congestion.on_sent(path.congestion.room() - kDatagramBytesJumbo, us(3));
  path.bytes_unasked = 0;
  EXPECT_TRUE(path.wants_ack_of_next(kDatagramBytesJumbo)) << "nothing fits behind it";
}

TEST(SendingPath, on_echo__is_timed_from_its_own_challenge) {
  SendingPath path = make_path();
  path.on_challenge_sent({11, at(0)});
  path.on_challenge_sent({12, at(10)});
  path.on_challenge_sent({13, at(30)});
  EXPECT_EQ(path.on_echo(11), at(0));
  EXPECT_EQ(path.on_echo(12), std::nullopt) << "one echo settles them all";
}

TEST(SendingPath, on_echo__strangers_and_zero_never_match) {
  SendingPath path = make_path();
  EXPECT_EQ(path.on_echo(0), std::nullopt);
  path.on_challenge_sent({11, at(0)});
  EXPECT_EQ(path.on_echo(0), std::nullopt);
  EXPECT_EQ(path.on_echo(10), std::nullopt);
  path.forget_challenges();
  EXPECT_EQ(path.on_echo(11), std::nullopt);
}

TEST(SendingPath, on_challenge_sent__keeps_the_newest) {
  SendingPath path = make_path();
  for (uint64_t i = 1; i <= kChallengesKept + 1; ++i) {
    path.on_challenge_sent({i, at(static_cast<int64_t>(i))});
  }
  EXPECT_EQ(path.on_echo(1), std::nullopt);
  EXPECT_EQ(path.on_echo(2), at(2));
}

TEST(PathState, path_state_name__differs_for_each) {
  EXPECT_STREQ(path_state_name(PathState::kValidating), "validating");
  EXPECT_STREQ(path_state_name(PathState::kActive), "active");
  EXPECT_STREQ(path_state_name(PathState::kAvoided), "avoided");
  EXPECT_STREQ(path_state_name(PathState::kSuspect), "suspect");
}

}  // namespace
}  // namespace securefabric::transport
