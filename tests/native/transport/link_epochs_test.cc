#include "transport/link_epochs.h"

#include <gtest/gtest.h>

#include <deque>
#include <set>
#include <string>

#include "base/random.h"
#include "crypto/key_schedule.h"
#include "transport/limits.h"

namespace securefabric::transport {
namespace {

using base::Duration;
using base::Instant;
using base::Rank;
using crypto::SecretBuffer;

constexpr Duration kLinger = Duration::millis(30);
constexpr Duration kPatience = Duration::seconds(70);

SecretBuffer secret_of(uint64_t seed) {
  SecretBuffer secret = SecretBuffer::allocate(32);
  base::Random random(seed);
  for (uint8_t& byte : secret.bytes()) byte = static_cast<uint8_t>(random.next());
  return secret;
}

Instant at_ms(int64_t ms) {
  return Instant() + Duration::millis(ms);
}

// One end of a link, with the keys it would have installed.
struct End {
  End(Rank own, Rank peer, const EpochLimits& limits, uint64_t seed)
      : epochs(own, peer, limits), next_seed(seed) {
    epochs.install(secret_of(7), Instant());
  }

  LinkEpochs::DrawPrivateKey draw() {
    return [this] { return secret_of(next_seed++); };
  }
  void act(const LinkEpochs::Effects& effects) {
    if (effects.installs) ++installed;
    if (effects.moves) ++moved;
  }

  LinkEpochs epochs;
  uint64_t next_seed;  // of the next private key
  int installed = 0;   // times that receive keys were installed
  int moved = 0;       // times that sending moved
};

EpochLimits by_bytes(uint64_t bytes) {
  EpochLimits limits;
  limits.bytes = bytes;
  return limits;
}

struct Pair {
  explicit Pair(const EpochLimits& limits)
      : low(Rank{2}, Rank{5}, limits, 100), high(Rank{5}, Rank{2}, limits, 200) {}
  End low;
  End high;
};

bool is_same(base::Bytes a, base::Bytes b) {
  return base::to_hex(a) == base::to_hex(b);
}

void expect_agreement(const Pair& pair) {
  EXPECT_TRUE(is_same(pair.low.epochs.send_secret(), pair.high.epochs.receive_secret()));
  EXPECT_TRUE(is_same(pair.high.epochs.send_secret(), pair.low.epochs.receive_secret()));
  EXPECT_FALSE(is_same(pair.low.epochs.send_secret(), pair.high.epochs.send_secret()));
}

TEST(LinkEpochs, install__begins_epoch_0) {
  Pair pair{EpochLimits()};
  expect_agreement(pair);
  EXPECT_EQ(pair.low.epochs.sending_epoch(), 0u);
  EXPECT_TRUE(
      is_same(pair.low.epochs.send_secret(),
              crypto::derive_direction_secret(secret_of(7).view(), Rank{2}, Rank{5}, 0).view()));
}

TEST(LinkEpochs, is_due__by_age_bytes_or_forgeries) {
  EpochLimits limits;
  limits.age = Duration::seconds(10);
  limits.bytes = 1'000;
  limits.forgeries = 3;
  {
    End end(Rank{0}, Rank{1}, limits, 1);
    EXPECT_FALSE(end.epochs.is_due(at_ms(9'999)));
    EXPECT_TRUE(end.epochs.is_due(at_ms(10'000)));
    EXPECT_EQ(end.epochs.deadline(kLinger, kPatience), at_ms(10'000));
  }
  {
    End end(Rank{0}, Rank{1}, limits, 1);
    end.epochs.on_traffic(999);
    EXPECT_FALSE(end.epochs.is_due(Instant()));
    end.epochs.on_traffic(1);
    EXPECT_TRUE(end.epochs.is_due(Instant()));
  }
  {
    End end(Rank{0}, Rank{1}, limits, 1);
    for (int i = 0; i < 2; ++i) end.epochs.on_forgery();
    EXPECT_FALSE(end.epochs.is_due(Instant()));
    end.epochs.on_forgery();
    EXPECT_TRUE(end.epochs.is_due(Instant()));
  }
}

TEST(LinkEpochs, is_due__not_before_there_is_a_secret) {
  EpochLimits limits;
  limits.age = Duration();
  const LinkEpochs epochs(Rank{0}, Rank{1}, limits);
  EXPECT_FALSE(epochs.is_due(at_ms(5)));
  EXPECT_TRUE(epochs.deadline(kLinger, kPatience).is_never());
}

TEST(LinkEpochs, exchange__one_side_begins) {
  Pair pair(by_bytes(1));
  End& low = pair.low;
  End& high = pair.high;
  low.epochs.on_traffic(1);
  ASSERT_TRUE(low.epochs.is_due(Instant()));
  EXPECT_TRUE(low.epochs.begin(low.draw(), at_ms(0)).must_send_half);
  EXPECT_FALSE(low.epochs.is_due(Instant()));
  const wire::EpochFrame first = *low.epochs.half();
  EXPECT_EQ(first.epoch, 1u);

  const auto answered = high.epochs.handle(first, 0, high.draw(), at_ms(1));
  ASSERT_TRUE(answered.ok());
  EXPECT_TRUE(answered.value().must_send_half);
  EXPECT_TRUE(answered.value().installs);
  EXPECT_FALSE(answered.value().moves) << "the other end has not our half yet";
  EXPECT_EQ(high.epochs.sending_epoch(), 0u);

  // Its ack of our half came first, with its own half still to come: nothing to move to yet.
  EXPECT_FALSE(low.epochs.on_acknowledged(1).moves);
  const auto completed = low.epochs.handle(*high.epochs.half(), 0, low.draw(), at_ms(2));
  ASSERT_TRUE(completed.ok());
  EXPECT_FALSE(completed.value().must_send_half);
  EXPECT_TRUE(completed.value().installs);
  EXPECT_TRUE(completed.value().moves);
  EXPECT_EQ(low.epochs.sending_bit(), 1);

  // The first packet of the new epoch is as good as an ack.
  EXPECT_TRUE(high.epochs.on_opened(1, at_ms(3)).moves);
  EXPECT_FALSE(high.epochs.half().has_value());
  expect_agreement(pair);
}

TEST(LinkEpochs, exchange__old_keys_are_wiped_a_while_after_the_first_packet) {
  Pair pair(by_bytes(1));
  pair.low.epochs.on_traffic(1);
  pair.low.epochs.begin(pair.low.draw(), at_ms(0));
  ASSERT_TRUE(pair.high.epochs.handle(*pair.low.epochs.half(), 0, pair.high.draw(), at_ms(0)).ok());
  ASSERT_TRUE(pair.low.epochs.handle(*pair.high.epochs.half(), 0, pair.low.draw(), at_ms(0)).ok());
  LinkEpochs& epochs = pair.low.epochs;
  epochs.on_acknowledged(1);
  EXPECT_FALSE(epochs.old_receive_secret().empty());
  EXPECT_FALSE(epochs.may_retire(at_ms(1'000), kLinger)) << "the peer may still send in it";
  EXPECT_EQ(epochs.deadline(kLinger, kPatience), at_ms(0) + kPatience);
  epochs.on_traffic(5);
  EXPECT_FALSE(epochs.is_due(at_ms(1'000))) << "two epochs live already";

  epochs.on_opened(0, at_ms(1'000));  // still the old one
  EXPECT_FALSE(epochs.may_retire(at_ms(2'000), kLinger));
  epochs.on_opened(1, at_ms(2'000));
  epochs.on_opened(1, at_ms(2'010));
  EXPECT_EQ(epochs.deadline(kLinger, kPatience), at_ms(2'030));
  EXPECT_FALSE(epochs.may_retire(at_ms(2'029), kLinger));
  ASSERT_TRUE(epochs.may_retire(at_ms(2'030), kLinger));
  epochs.retire();
  EXPECT_TRUE(epochs.old_receive_secret().empty());
  EXPECT_FALSE(epochs.may_retire(at_ms(3'000), kLinger));
  EXPECT_TRUE(epochs.is_due(at_ms(3'000)));
}

TEST(LinkEpochs, handle__a_frame_that_comes_again_is_nothing_new) {
  Pair pair(by_bytes(1));
  pair.low.epochs.on_traffic(1);
  pair.low.epochs.begin(pair.low.draw(), at_ms(0));
  const wire::EpochFrame frame = *pair.low.epochs.half();
  ASSERT_TRUE(pair.high.epochs.handle(frame, 0, pair.high.draw(), Instant()).ok());
  const std::string before = base::to_hex(pair.high.epochs.receive_secret());
  const auto again = pair.high.epochs.handle(frame, 0, pair.high.draw(), Instant());
  ASSERT_TRUE(again.ok());
  EXPECT_FALSE(again.value().installs || again.value().must_send_half || again.value().moves);
  EXPECT_EQ(base::to_hex(pair.high.epochs.receive_secret()), before);
}

TEST(LinkEpochs, handle__refuses_epochs_out_of_order_and_bad_keys) {
  Pair pair{EpochLimits()};
  wire::EpochFrame frame{2, crypto::KeyPair::from_private(secret_of(1)).public_key()};
  auto result = pair.low.epochs.handle(frame, 0, pair.low.draw(), Instant());
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().code, base::ErrorCode::kPeerLost);

  frame.epoch = 1;
  frame.public_key.fill(0);  // a point of low order
  result = pair.low.epochs.handle(frame, 0, pair.low.draw(), Instant());
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().code, base::ErrorCode::kAuth);
}

TEST(LinkEpochs, handle__keys_of_the_epoch_before_have_no_say_in_the_next) {
  Pair pair(by_bytes(1));
  pair.low.epochs.on_traffic(1);
  pair.low.epochs.begin(pair.low.draw(), at_ms(0));
  ASSERT_TRUE(pair.high.epochs.handle(*pair.low.epochs.half(), 0, pair.high.draw(), at_ms(0)).ok());
  pair.high.epochs.on_opened(1, at_ms(1));
  ASSERT_EQ(pair.high.epochs.sending_epoch(), 1u);
  ASSERT_FALSE(pair.high.epochs.old_receive_secret().empty()) << "packets of epoch 0 still open";
  // Somebody who has learned the keys of epoch 0 only now.
  const wire::EpochFrame forged{2, crypto::KeyPair::from_private(secret_of(1)).public_key()};
  const auto result = pair.high.epochs.handle(forged, 0, pair.high.draw(), at_ms(2));
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().code, base::ErrorCode::kPeerLost);
}

// Each change costs this end a key exchange, so a member that begins one after the other is
// refused.
TEST(LinkEpochs, handle__refuses_changes_without_end) {
  const auto changes_taken = [](Duration apart) {
    Pair pair(by_bytes(1));
    int64_t taken = 0;
    for (Instant now = at_ms(5); taken < 100; ++taken, now = now + apart) {
      pair.low.epochs.on_traffic(1);
      (void)pair.low.epochs.begin(pair.low.draw(), now);
      const auto epoch = pair.low.epochs.half()->epoch;
      const crypto::EpochBit old = pair.low.epochs.newest_bit();
      if (!pair.high.epochs.handle(*pair.low.epochs.half(), old, pair.high.draw(), now)) break;
      if (!pair.low.epochs.handle(*pair.high.epochs.half(), old, pair.low.draw(), now)) break;
      (void)pair.low.epochs.on_acknowledged(epoch);
      (void)pair.high.epochs.on_opened(old ^ 1, now);
      (void)pair.low.epochs.on_opened(old ^ 1, now);
      pair.low.epochs.retire();
      pair.high.epochs.retire();
    }
    return taken;
  };
  EXPECT_EQ(changes_taken(Duration()), kEpochsAtOnce);
  EXPECT_EQ(changes_taken(kEpochIntervalMin), 100) << "as long as they come slowly enough";
}

TEST(LinkEpochs, is_overdue__until_the_peer_sends_in_the_new_epoch) {
  {
    End end(Rank{0}, Rank{1}, by_bytes(1), 1);
    EXPECT_FALSE(end.epochs.is_overdue(at_ms(1'000'000), kPatience)) << "no change is under way";
    end.epochs.on_traffic(1);
    end.epochs.begin(end.draw(), at_ms(5));
    end.epochs.on_acknowledged(1);  // it hears us, and is silent
    EXPECT_EQ(end.epochs.deadline(kLinger, kPatience), at_ms(5) + kPatience);
    EXPECT_FALSE(end.epochs.is_overdue(at_ms(4) + kPatience, kPatience));
    EXPECT_TRUE(end.epochs.is_overdue(at_ms(5) + kPatience, kPatience));
  }
  {
    Pair pair(by_bytes(1));
    const LinkEpochs& high = pair.high.epochs;
    pair.low.epochs.on_traffic(1);
    pair.low.epochs.begin(pair.low.draw(), at_ms(0));
    ASSERT_TRUE(
        pair.high.epochs.handle(*pair.low.epochs.half(), 0, pair.high.draw(), at_ms(7)).ok());
    EXPECT_TRUE(high.is_overdue(at_ms(7) + kPatience, kPatience)) << "it offered, and stays";
    pair.high.epochs.on_opened(0, at_ms(8));
    EXPECT_TRUE(high.is_overdue(at_ms(7) + kPatience, kPatience));
    pair.high.epochs.on_opened(1, at_ms(9));
    EXPECT_FALSE(high.is_overdue(at_ms(7) + kPatience, kPatience));
  }
}

TEST(LinkEpochs, wipe__leaves_nothing_and_begins_nothing) {
  Pair pair(by_bytes(1));
  pair.low.epochs.on_traffic(1);
  pair.low.epochs.begin(pair.low.draw(), at_ms(0));
  ASSERT_TRUE(pair.high.epochs.handle(*pair.low.epochs.half(), 0, pair.high.draw(), at_ms(0)).ok());
  LinkEpochs& epochs = pair.high.epochs;
  epochs.wipe();
  EXPECT_TRUE(epochs.send_secret().empty());
  EXPECT_TRUE(epochs.receive_secret().empty());
  EXPECT_TRUE(epochs.old_receive_secret().empty());
  EXPECT_FALSE(epochs.half().has_value());
  EXPECT_FALSE(epochs.is_due(at_ms(1'000'000'000)));
  EXPECT_FALSE(epochs.is_overdue(at_ms(1'000'000'000), kPatience));
  EXPECT_TRUE(epochs.deadline(kLinger, kPatience).is_never());
}

// Both ends begin whenever they like; frames and acks are lost, repeated and late.
TEST(LinkEpochs, property__both_ends_follow_each_other_through_any_network) {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE(seed);
    base::Random random(seed);
    Pair pair(by_bytes(50));
    struct Packet {
      crypto::EpochBit bit;                   // it was sealed in
      std::string secret;                     // direction secret it was sealed with
      std::optional<wire::EpochFrame> frame;  // it carries
      uint32_t acked_epoch;                   // half of this epoch that the sender has seen; 0 none
    };
    std::deque<Packet> networks[2];
    uint32_t seen[2] = {0, 0};  // newest epoch whose half has come
    std::set<std::string> secrets;
    for (int step = 0; step < 4'000; ++step) {
      const Instant now = at_ms(step);
      const size_t side = random.below(2);
      End& end = side == 0 ? pair.low : pair.high;
      LinkEpochs& epochs = end.epochs;
      if (epochs.may_retire(now, kLinger)) epochs.retire();
      epochs.on_traffic(random.below(3));
      if (epochs.is_due(now)) end.act(epochs.begin(end.draw(), now));
      secrets.insert(base::to_hex(epochs.send_secret()));
      networks[side].push_back(
          {epochs.sending_bit(), base::to_hex(epochs.send_secret()), epochs.half(), seen[side]});
      if (random.chance(0.3)) networks[side].pop_back();

      std::deque<Packet>& inbound = networks[1 - side];
      if (inbound.empty()) continue;
      const Packet packet = inbound.front();
      if (random.chance(0.9)) inbound.pop_front();
      const bool is_newest = packet.bit == epochs.newest_bit();
      const base::Bytes secret = is_newest ? epochs.receive_secret() : epochs.old_receive_secret();
      ASSERT_EQ(packet.secret, base::to_hex(secret)) << "step " << step << ": no key for it";
      end.act(epochs.on_opened(packet.bit, now));
      if (packet.acked_epoch > 0) end.act(epochs.on_acknowledged(packet.acked_epoch));
      if (!packet.frame) continue;
      const auto effects = epochs.handle(*packet.frame, packet.bit, end.draw(), now);
      ASSERT_TRUE(effects.ok()) << effects.error().message;
      end.act(effects.value());
      seen[side] = std::max(seen[side], packet.frame->epoch);
    }
    for (const End* end : {&pair.low, &pair.high}) {
      secrets.insert(base::to_hex(end->epochs.send_secret()));
    }
    EXPECT_GT(pair.low.installed, 5);
    EXPECT_EQ(secrets.size(), pair.low.moved + pair.high.moved + 2u) << "a secret was used twice";
    EXPECT_LE(pair.low.installed - pair.high.installed, 1);
    EXPECT_LE(pair.high.installed - pair.low.installed, 1);
  }
}

}  // namespace
}  // namespace securefabric::transport
