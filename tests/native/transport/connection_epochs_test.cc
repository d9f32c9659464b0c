// Two ranks whose link changes its keys while messages are under way. The exchange itself is tested
// in link_epochs_test.cc.
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "transfers.h"
#include "transport/connection.h"
#include "wire/decode.h"

namespace securefabric::transport {
namespace {

using base::Duration;

PairOptions with_epochs_of(uint64_t bytes) {
  PairOptions options;
  options.epoch_limits.bytes = bytes;
  return options;
}

uint64_t epochs_of(EndpointPair& pair) {
  return std::min(pair.endpoint(0).traffic().epochs_begun, pair.endpoint(1).traffic().epochs_begun);
}

TEST(ConnectionEpochs, keys_change_among_messages_and_nothing_is_lost_or_sent_again) {
  EndpointPair pair(with_epochs_of(100'000));
  ASSERT_TRUE(pair.join());
  Transfers transfers(pair);
  for (uint64_t operation = 1; operation <= 6; ++operation) {
    transfers.both(collective_key(operation), kLarge);
    ASSERT_TRUE(transfers.run());
    // A heartbeat in the new epoch and the old keys' time: two epochs live at once, not three.
    pair.run_for(Duration::millis(1'200));
  }
  EXPECT_TRUE(transfers.is_intact());
  EXPECT_EQ(failures(pair), 0u);
  EXPECT_GE(epochs_of(pair), 5u);
  // Nothing was lost or sent again for it.
  EXPECT_EQ(pair.endpoint(0).traffic().packets_lost, 0u);
  EXPECT_EQ(pair.endpoint(0).traffic().fragments_resent, 0u);
  EXPECT_EQ(pair.endpoint(0).traffic().probe_timeouts, 0u);
  EXPECT_EQ(pair.all_drops(0) + pair.all_drops(1), 0u);
}

TEST(ConnectionEpochs, losses_reordering_and_short_generations_change_nothing) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    SCOPED_TRACE(seed);
    PairOptions options = with_epochs_of(60'000);
    options.generation_bits = 5;
    EndpointPair pair(options);
    ASSERT_TRUE(pair.join());
    base::Random random(seed);
    pair.filter = [&](Datagram& datagram) {
      datagram.at = datagram.at + Duration::micros(static_cast<int64_t>(random.below(200)));
      return !random.chance(0.05);
    };
    Transfers transfers(pair);
    for (uint64_t operation = 1; operation <= 8; ++operation) {
      transfers.both(collective_key(operation), kLarge / 4);
      transfers.both(point_to_point_key(operation), kLarge / 4);
      ASSERT_TRUE(transfers.run(Duration::seconds(60)));
      pair.run_for(
          Duration::millis(100));  // the old keys' time: two epochs live at once, not three
    }
    EXPECT_TRUE(transfers.is_intact());
    EXPECT_EQ(failures(pair), 0u);
    EXPECT_GE(epochs_of(pair), 3u);
  }
}

TEST(ConnectionEpochs, both_epochs_count_packet_numbers_on) {
  EndpointPair pair(with_epochs_of(100'000));
  std::map<std::pair<size_t, uint16_t>, std::set<base::PacketNumber>> numbers;
  std::set<uint8_t> bits;
  pair.filter = [&](Datagram& datagram) {
    wire::Header header;
    EXPECT_EQ(wire::decode_header(datagram.bytes, header), wire::HeaderStatus::kOk);
    auto& used = numbers[{datagram.from, header.path.value}];
    EXPECT_TRUE(used.insert(header.packet_number).second) << "a number was sealed twice";
    bits.insert(header.epoch_bit);
    return true;
  };
  ASSERT_TRUE(pair.join());
  Transfers transfers(pair);
  transfers.both(collective_key(1), kLarge);
  ASSERT_TRUE(transfers.run());
  EXPECT_EQ(bits.size(), 2u);
  for (const auto& [path, used] : numbers) EXPECT_EQ(*used.rbegin() + 1, used.size());
}

TEST(ConnectionEpochs, old_packets_open_for_a_while_and_then_no_more) {
  EndpointPair pair(with_epochs_of(2'000'000));
  ASSERT_TRUE(pair.join());
  // Packets of epoch 0 that the network keeps.
  std::vector<Datagram> kept;
  pair.filter = [&](Datagram& datagram) {
    wire::Header header;
    EXPECT_EQ(wire::decode_header(datagram.bytes, header), wire::HeaderStatus::kOk);
    const bool is_kept = datagram.from == 0 && header.epoch_bit == 0 && kept.size() < 2;
    if (is_kept) kept.push_back(datagram);
    return !is_kept;
  };
  Transfers transfers(pair);
  transfers.both(collective_key(1), kLarge);
  ASSERT_TRUE(transfers.run());
  pair.run_for(Duration::seconds(3));  // heartbeats in the new epoch, and the old keys' time
  ASSERT_GE(epochs_of(pair), 1u);
  ASSERT_EQ(epochs_of(pair) % 2, 1u) << "otherwise the bit is in use again";
  ASSERT_EQ(kept.size(), 2u);
  const uint64_t before = pair.endpoint(1).drops().unknown_spi;
  for (const Datagram& datagram : kept) pair.inject(0, 1, datagram.socket, datagram.bytes);
  pair.run_for(Duration::millis(10));
  EXPECT_EQ(pair.endpoint(1).drops().unknown_spi, before + 2);
  EXPECT_EQ(failures(pair), 0u);
}

TEST(ConnectionEpochs, an_idle_link_changes_its_keys_by_age) {
  PairOptions options;
  options.epoch_limits.age = Duration::seconds(10);
  EndpointPair pair(options);
  ASSERT_TRUE(pair.join());
  pair.run_for(Duration::seconds(65));
  EXPECT_GE(epochs_of(pair), 6u);
  EXPECT_LE(epochs_of(pair), 7u) << "within the last eighth of the age";
  Transfers transfers(pair);
  transfers.both(collective_key(1), kLarge);
  ASSERT_TRUE(transfers.run());
  EXPECT_TRUE(transfers.is_intact());
}

TEST(ConnectionEpochs, forgeries_force_fresh_keys_and_never_end_the_link) {
  PairOptions options;
  options.epoch_limits.forgeries = 100;
  EndpointPair pair(options);
  ASSERT_TRUE(pair.join());
  std::optional<Datagram> sample;
  pair.filter = [&](Datagram& datagram) {
    if (datagram.from == 0 && !sample) sample = datagram;
    return true;
  };
  Transfers transfers(pair);
  transfers.both(collective_key(1), 1'000);
  ASSERT_TRUE(transfers.run());
  ASSERT_TRUE(sample.has_value());
  for (uint64_t i = 0; i < 250; ++i) {
    ByteVector forged = sample->bytes;
    wire::Header header;
    ASSERT_EQ(wire::decode_header(forged, header), wire::HeaderStatus::kOk);
    header.packet_number += 1'000 + i;
    wire::encode_header(header, forged);
    pair.inject(0, 1, sample->socket, forged);
    pair.run_for(Duration::millis(1));
  }
  pair.run_for(Duration::seconds(2));
  EXPECT_GE(pair.endpoint(1).drops().auth_failed, 100u);
  EXPECT_GE(epochs_of(pair), 1u);
  transfers.both(collective_key(2), kLarge);
  ASSERT_TRUE(transfers.run());
  EXPECT_TRUE(transfers.is_intact());
  EXPECT_EQ(failures(pair), 0u);
}

// The rogue has joined, answers challenges and is heard; it knows no epoch but the first.
class RogueEpochsTest : public ::testing::Test {
 protected:
  RogueEpochsTest() : pair_(with_age()) {
    rogue_.introduce();
    rogue_.say_frame(wire::ConfirmFrame{1});
    pair_.run_for(Duration::millis(1));
    listen();
  }

  static PairOptions with_age() {
    PairOptions options;
    options.epoch_limits.age = Duration::seconds(2);
    return options;
  }
  void listen() {
    std::vector<ByteVector> inbox;
    inbox.swap(pair_.rogue_inbox);
    for (const ByteVector& datagram : inbox) {
      const ByteVector plaintext = rogue_.open(datagram);
      wire::FrameDecoder decoder(plaintext);
      while (const auto frame = decoder.next()) {
        if (const auto* confirm = std::get_if<wire::ConfirmFrame>(&*frame)) {
          rogue_.say_frame(wire::ConfirmEchoFrame{confirm->challenge});
        }
        if (std::holds_alternative<wire::EpochFrame>(*frame)) ++offers_;
      }
      wire::Header header;
      SF_CHECK(wire::decode_header(datagram, header) == wire::HeaderStatus::kOk);
      wire::AckFrame ack;
      ack.path = header.path;
      ack.largest = header.packet_number;
      rogue_.say_frame(ack);
    }
  }
  std::optional<base::Error> failure() {
    const auto failed = pair_.events_of<PeerFailed>(0);
    return failed.empty() ? std::nullopt : std::optional(failed[0].error);
  }
  static wire::EpochFrame offer(uint32_t epoch) {
    return {epoch, crypto::KeyPair::from_private(EndpointPair::secret(9)).public_key()};
  }

  EndpointPair pair_;
  RoguePeer rogue_{pair_, 0};
  int offers_ = 0;  // EPOCH frames that came
};

TEST_F(RogueEpochsTest, who_does_not_follow_is_failed_by_name) {
  const base::Instant begin = pair_.now();
  while (!failure() && pair_.now() - begin < Duration::seconds(100)) {
    rogue_.say_frame(wire::PingFrame{});
    pair_.run_for(Duration::millis(500));
    listen();
  }
  EXPECT_GE(offers_, 1);
  ASSERT_TRUE(failure().has_value());
  EXPECT_EQ(failure()->code, base::ErrorCode::kPeerLost);
  EXPECT_NE(failure()->message.find("rank 2 (10.0.2.0:4000) does not change its keys"),
            std::string::npos)
      << failure()->message;
  EXPECT_GE(pair_.now() - begin, kDeathTimeoutDefault + kEpochChangeMax);
  EXPECT_LE(pair_.now() - begin, kDeathTimeoutDefault + kEpochChangeMax + Duration::seconds(3));
}

TEST_F(RogueEpochsTest, an_epoch_that_does_not_come_next) {
  rogue_.say_frame(offer(2));
  ASSERT_TRUE(failure().has_value());
  EXPECT_NE(failure()->message.find("offers keys of epoch 2 when those of epoch 1 come next"),
            std::string::npos)
      << failure()->message;
}

TEST_F(RogueEpochsTest, a_key_of_low_order) {
  wire::EpochFrame frame = offer(1);
  frame.public_key.fill(0);
  rogue_.say_frame(frame);
  ASSERT_TRUE(failure().has_value());
  EXPECT_EQ(failure()->code, base::ErrorCode::kAuth);
  EXPECT_NE(failure()->message.find("offers keys that cannot be used"), std::string::npos)
      << failure()->message;
}

TEST_F(RogueEpochsTest, an_end_that_fails_seals_and_opens_no_more) {
  rogue_.say_frame(offer(1));
  pair_.run_for(Duration::millis(1));
  EXPECT_FALSE(failure().has_value());
  rogue_.say(ByteVector{0xFF});
  ASSERT_TRUE(failure().has_value());
  pair_.run_for(Duration::seconds(1));  // what was on its way
  pair_.rogue_inbox.clear();
  rogue_.say_frame(wire::PingFrame{});
  pair_.run_for(Duration::seconds(20));
  EXPECT_TRUE(pair_.rogue_inbox.empty());
  EXPECT_EQ(pair_.endpoint(0).drops().peer_closed, 1u);
}

}  // namespace
}  // namespace securefabric::transport
