#include "transport/sent_packets.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "base/random.h"
#include "transport/limits.h"

namespace securefabric::transport {
namespace {

using base::Duration;
using base::Instant;
using base::PacketNumber;
using ByteVector = std::vector<uint8_t>;

constexpr Duration kLossDelay = Duration::millis(5);

Instant at(int64_t millis) {
  return Instant::from_nanos(millis * 1'000'000);
}

// An ack of exactly these numbers.
struct Ack {
  explicit Ack(std::vector<PacketNumber> numbers) {
    frame.largest = *std::max_element(numbers.begin(), numbers.end());
    for (const PacketNumber n : numbers) {
      if (n == frame.largest) continue;
      const uint64_t bit = frame.largest - 1 - n;
      bitmap[bit / 8] = static_cast<uint8_t>(bitmap[bit / 8] | 1u << (bit % 8));
    }
    frame.bitmap = bitmap;
  }
  ByteVector bitmap = ByteVector(wire::AckFrame::kBitmapBytesMax);
  wire::AckFrame frame;
};

class SentPacketsTest : public testing::Test {
 protected:
  // Data that names the packet number, so that the tests can tell packets apart.
  void send(Instant when, bool is_ack_eliciting = true) {
    SentPacket packet;
    packet.sent_at = when;
    packet.bytes = is_ack_eliciting ? 100 : 0;
    packet.is_ack_eliciting = is_ack_eliciting;
    if (is_ack_eliciting) packet.data = SentData{next_, 0, 1};
    packets_.on_sent(next_++, std::move(packet));
  }
  void send_many(int count, Instant when) {
    for (int i = 0; i < count; ++i) send(when);
  }
  bool ack(std::vector<PacketNumber> numbers, Instant now) {
    settled_.clear();
    return packets_.on_ack(Ack(std::move(numbers)).frame, now, settled_);
  }
  void detect_lost(Instant now) {
    settled_.clear();
    packets_.detect_lost(now, kLossDelay, settled_);
  }
  static std::vector<uint64_t> numbers(const std::vector<SentPacket>& packets) {
    std::vector<uint64_t> all;
    for (const SentPacket& packet : packets) all.push_back(packet.data->message_id);
    return all;
  }
  using Numbers = std::vector<uint64_t>;

  SentPackets packets_;
  SentPackets::Settled settled_;
  PacketNumber next_ = 0;
};

TEST_F(SentPacketsTest, on_sent__remembers_what_asks_for_an_ack) {
  EXPECT_FALSE(packets_.has_eliciting_in_flight());
  send(at(1), /*is_ack_eliciting=*/false);
  EXPECT_FALSE(packets_.has_eliciting_in_flight());
  EXPECT_EQ(packets_.oldest_in_flight(), nullptr);
  send(at(2));
  send(at(3));
  send(at(4), /*is_ack_eliciting=*/false);
  EXPECT_TRUE(packets_.has_eliciting_in_flight());
  EXPECT_EQ(packets_.silent_since(), at(2));
  EXPECT_EQ(packets_.oldest_in_flight()->sent_at, at(2));
}

TEST_F(SentPacketsTest, on_ack__settles_in_the_order_of_sending) {
  send_many(5, at(0));
  ASSERT_TRUE(ack({4, 0, 2}, at(7)));
  EXPECT_EQ(numbers(settled_.acked), (Numbers{0, 2, 4}));
  EXPECT_EQ(settled_.rtt, Duration::millis(7));
  EXPECT_TRUE(settled_.has_progress());
  EXPECT_TRUE(packets_.has_eliciting_in_flight());
  ASSERT_TRUE(ack({4, 3, 1}, at(8)));
  EXPECT_EQ(numbers(settled_.acked), (Numbers{1, 3}));
  EXPECT_FALSE(packets_.has_eliciting_in_flight());
}

TEST_F(SentPacketsTest, on_ack__largest_already_acked) {
  send_many(2, at(0));
  ASSERT_TRUE(ack({1}, at(1)));
  ASSERT_TRUE(ack({1}, at(2)));
  EXPECT_FALSE(settled_.has_progress());
  EXPECT_FALSE(settled_.rtt.has_value());
  ASSERT_TRUE(ack({1, 0}, at(3)));
  EXPECT_EQ(numbers(settled_.acked), (Numbers{0}));
  EXPECT_FALSE(settled_.rtt.has_value()) << "the largest is old news: its delay says nothing";
}

TEST_F(SentPacketsTest, on_ack__never_sent_is_a_violation) {
  EXPECT_FALSE(ack({0}, at(1)));
  send(at(0));
  EXPECT_FALSE(ack({1}, at(1)));
  EXPECT_FALSE(ack({UINT64_MAX}, at(1)));
  EXPECT_TRUE(ack({0}, at(1)));
}

// In both directions at once, most acks name a packet of ours that itself carried only an ack.
TEST_F(SentPacketsTest, on_ack__largest_asked_for_no_ack) {
  send_many(30, at(0));
  send(at(2), /*is_ack_eliciting=*/false);  // number 30
  ASSERT_TRUE(ack({30, 29}, at(5)));
  EXPECT_EQ(numbers(settled_.acked), (Numbers{29}));
  EXPECT_EQ(settled_.rtt, Duration::millis(3)) << "from the packet that arrived last";
  detect_lost(at(5));
  EXPECT_EQ(settled_.lost.size(), 29u) << "packets 0 to 28 are overtaken by 30";
}

TEST_F(SentPacketsTest, on_ack__only_of_acks_gives_no_sample) {
  send(at(0), /*is_ack_eliciting=*/false);
  send(at(0), /*is_ack_eliciting=*/false);
  ASSERT_TRUE(ack({1}, at(5)));
  EXPECT_FALSE(settled_.rtt.has_value());
  EXPECT_FALSE(settled_.has_progress());
}

TEST_F(SentPacketsTest, on_ack__overtaken_acks_still_settle) {
  send_many(3, at(0));
  ASSERT_TRUE(ack({2}, at(1)));
  ASSERT_TRUE(ack({1, 0}, at(2)));
  EXPECT_EQ(numbers(settled_.acked), (Numbers{0, 1}));
  EXPECT_FALSE(settled_.rtt.has_value());
}

TEST_F(SentPacketsTest, detect_lost__needs_a_later_ack) {
  send_many(100, at(0));
  detect_lost(at(10'000));
  EXPECT_TRUE(settled_.lost.empty());
  EXPECT_TRUE(packets_.loss_time(kLossDelay).is_never());
}

TEST_F(SentPacketsTest, detect_lost__however_many_overtook_it_only_time_decides) {
  send_many(300, at(0));
  ASSERT_TRUE(ack({299}, at(4)));
  detect_lost(at(4));
  EXPECT_TRUE(settled_.lost.empty());
  detect_lost(at(5));
  EXPECT_EQ(settled_.lost.size(), 299u);
}

TEST_F(SentPacketsTest, detect_lost__by_time) {
  send(at(0));
  send(at(1));
  send(at(2));
  ASSERT_TRUE(ack({2}, at(3)));
  EXPECT_EQ(packets_.loss_time(kLossDelay), at(5));
  detect_lost(at(4));
  EXPECT_TRUE(settled_.lost.empty());
  detect_lost(at(5));
  EXPECT_EQ(numbers(settled_.lost), (Numbers{0}));
  EXPECT_EQ(packets_.loss_time(kLossDelay), at(6));
  detect_lost(at(6));
  EXPECT_EQ(numbers(settled_.lost), (Numbers{1}));
  EXPECT_TRUE(packets_.loss_time(kLossDelay).is_never());
  EXPECT_FALSE(packets_.has_eliciting_in_flight());
}

TEST_F(SentPacketsTest, detect_lost__leaves_what_is_newer_than_the_largest_acked) {
  send_many(2, at(0));
  send(at(4));
  ASSERT_TRUE(ack({1, 0}, at(5)));
  detect_lost(at(1000));
  EXPECT_TRUE(settled_.lost.empty());
  EXPECT_TRUE(packets_.has_eliciting_in_flight());
}

TEST_F(SentPacketsTest, on_ack__late_ack_revives_a_lost_packet_once) {
  send_many(10, at(0));
  ASSERT_TRUE(ack({9}, at(1)));
  detect_lost(at(5));
  EXPECT_EQ(settled_.lost.size(), 9u);
  ASSERT_TRUE(ack({9, 3}, at(6)));
  EXPECT_EQ(numbers(settled_.revived), (Numbers{3}));
  EXPECT_TRUE(settled_.acked.empty());
  EXPECT_TRUE(settled_.has_progress());
  ASSERT_TRUE(ack({9, 3}, at(7)));
  EXPECT_FALSE(settled_.has_progress());
}

TEST_F(SentPacketsTest, give_up_all__loses_everything_in_flight) {
  send_many(3, at(0));
  ASSERT_TRUE(ack({1}, at(1)));
  settled_.clear();
  packets_.give_up_all(settled_);
  EXPECT_EQ(numbers(settled_.lost), (Numbers{0, 2}));
  EXPECT_FALSE(packets_.has_eliciting_in_flight());
  EXPECT_EQ(packets_.oldest_in_flight(), nullptr);
  EXPECT_TRUE(packets_.loss_time(kLossDelay).is_never());
  ASSERT_TRUE(ack({2}, at(2)));
  EXPECT_EQ(numbers(settled_.revived), (Numbers{2}));
}

TEST_F(SentPacketsTest, is_full__counts_from_the_oldest_in_flight) {
  for (size_t i = 0; i < kInFlightPacketsMax; ++i) {
    EXPECT_FALSE(packets_.is_full());
    send(at(0));
  }
  EXPECT_TRUE(packets_.is_full());
  ASSERT_TRUE(ack({0}, at(1)));
  detect_lost(at(1));
  EXPECT_FALSE(packets_.is_full());
}

TEST_F(SentPacketsTest, on_sent__memory_of_the_lost_is_bounded) {
  send(at(0));
  send(at(1));
  ASSERT_TRUE(ack({1}, at(5)));
  detect_lost(at(5));
  ASSERT_EQ(numbers(settled_.lost), (Numbers{0}));
  // Everything else is acknowledged; 4096 packets later a late ack of packet 0 means nothing.
  for (size_t i = 0; i < 2 * kInFlightPacketsMax; ++i) {
    send(at(5));
    ASSERT_TRUE(ack({next_ - 1, next_ - 2}, at(5)));
    detect_lost(at(5));
  }
  settled_.clear();
  ASSERT_TRUE(packets_.on_ack(Ack({0}).frame, at(6), settled_));
  EXPECT_FALSE(settled_.has_progress());
}

TEST_F(SentPacketsTest, on_ack__what_the_bitmap_leaves_out_has_arrived) {
  send_many(1200, at(0));
  const ByteVector bitmap{0xFD};  // 1197 is missing
  settled_.clear();
  EXPECT_TRUE(packets_.on_ack({{}, 1199, 0, 0, bitmap}, at(1), settled_));
  EXPECT_EQ(settled_.acked.size(), 1024u) << "one is missing of the largest and 1024 below";
  EXPECT_EQ(settled_.acked.front().data->message_id, 1199u - 1024);
  detect_lost(at(1000));
  EXPECT_EQ(numbers(settled_.lost).size(), 1199u - 1024 + 1) << "what is below the reach, and 1197";
}

// The oracle keeps every packet in a map and follows the rule to the letter.
class Oracle {
 public:
  using Numbers = std::vector<uint64_t>;
  enum class State { kInFlight, kAcked, kLost };
  struct Packet {
    Instant sent_at;
    State state;
  };
  std::map<PacketNumber, Packet> packets;
  std::optional<PacketNumber> largest_acked;

  Numbers on_ack(const std::vector<PacketNumber>& numbers_acked, Numbers& revived) {
    Numbers acked;
    for (const PacketNumber n :
         std::set<PacketNumber>(numbers_acked.begin(), numbers_acked.end())) {
      Packet& packet = packets.at(n);
      if (packet.state == State::kInFlight) acked.push_back(n);
      if (packet.state == State::kLost) revived.push_back(n);
      packet.state = State::kAcked;
      largest_acked = std::max(largest_acked.value_or(0), n);
    }
    return acked;
  }
  Numbers detect_lost(Instant now) {
    Numbers lost;
    for (auto& [n, packet] : packets) {
      if (!largest_acked || n >= *largest_acked || packet.state != State::kInFlight) continue;
      if (packet.sent_at + kLossDelay > now) continue;
      packet.state = State::kLost;
      lost.push_back(n);
    }
    return lost;
  }
};

TEST_F(SentPacketsTest, every_call__agrees_with_the_oracle) {
  for (uint64_t seed = 0; seed < 100; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    base::Random random(seed);
    packets_ = SentPackets();
    next_ = 0;
    Oracle oracle;
    for (int64_t now = 0; now < 120; ++now) {
      for (uint64_t n = random.below(6); n > 0; --n) {
        oracle.packets[next_] = {at(now), Oracle::State::kInFlight};
        send(at(now));
      }
      if (next_ > 0 && random.chance(0.5)) {
        const PacketNumber newest = next_ - 1 - random.below(std::min<uint64_t>(next_, 10));
        std::vector<PacketNumber> acked{newest};
        for (int i = 0; i < 12; ++i)
          acked.push_back(newest - random.below(std::min<uint64_t>(newest + 1, 60)));
        Numbers revived;
        const Numbers expected = oracle.on_ack(acked, revived);
        ASSERT_TRUE(ack(acked, at(now)));
        ASSERT_EQ(numbers(settled_.acked), expected);
        ASSERT_EQ(numbers(settled_.revived), revived);
      }
      detect_lost(at(now));
      ASSERT_EQ(numbers(settled_.lost), oracle.detect_lost(at(now)));
      // Nothing is left that its own timer should have found.
      ASSERT_GT(packets_.loss_time(kLossDelay), at(now));
    }
  }
}

}  // namespace
}  // namespace securefabric::transport
