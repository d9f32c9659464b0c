#include "transport/path.h"

#include <gtest/gtest.h>

#include "endpoint_pair.h"

namespace securefabric::transport {
namespace {

using base::Duration;
using base::Instant;

SendingPath make_path() {
  const base::PathId id = base::PathId::from_sockets(0, 1);
  crypto::PathSealer sealer(EndpointPair::aead(), EndpointPair::secret(1), id, 22);
  return {id, EndpointPair::address(1, 1), std::move(sealer)};
}

Instant at(int64_t millis) {
  return Instant::from_nanos(millis * 1'000'000);
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
  EXPECT_EQ(path.probe_deadline(), at(5) + kInitialRtt * 2);
}

TEST(SendingPath, probe_deadline__asks_judges_then_doubles_up_to_the_ceiling) {
  SendingPath path = make_path();
  path.rtt.on_sample(Duration::micros(10), Duration());
  path.sent.on_sent(0, sent(at(0), 100));
  EXPECT_EQ(path.probe_deadline(), at(0) + path.rtt.tail_probe());
  path.probe_count = 1;
  EXPECT_EQ(path.probe_deadline(), at(0) + path.rtt.tail_probe() - kAckDelayMax);
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

TEST(SendingPath, burst_bytes_max__several_make_a_window) {
  SendingPath path = make_path();
  EXPECT_EQ(path.burst_bytes_max(), kBurstBytesMax);
  path.congestion.on_persistent_loss();
  EXPECT_EQ(path.burst_bytes_max(), kDatagramBytesMax);
}

TEST(SendingPath, has_room__an_empty_window_admits_one_packet) {
  SendingPath path = make_path();
  path.congestion.on_persistent_loss();
  EXPECT_TRUE(path.has_room());
  path.congestion.on_sent(kDatagramBytesMax, at(1));
  EXPECT_TRUE(path.has_room());
  path.congestion.on_sent(1, at(1));
  EXPECT_FALSE(path.has_room());
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
