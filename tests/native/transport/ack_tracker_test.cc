#include "transport/ack_tracker.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "base/random.h"

namespace securefabric::transport {
namespace {

using base::Instant;
using base::PacketNumber;

Instant at(int64_t micros) {
  return Instant::from_nanos(micros * 1000);
}

class AckTrackerTest : public testing::Test {
 protected:
  void arrive(PacketNumber number, Instant now = at(0)) {
    arrive(AckTracker::Arrival{number, 100, true, false, false}, now);
  }
  void arrive(AckTracker::Arrival arrival, Instant now = at(0)) {
    window_.commit(arrival.number);
    tracker_.on_packet(arrival, now);
  }
  // The numbers that the next ack reports.
  std::set<PacketNumber> make_ack(Instant now = at(0)) {
    ack_ = tracker_.make_ack(base::PathId{3}, window_, now, bitmap_);
    std::set<PacketNumber> numbers{ack_.largest};
    const size_t bits = std::min<size_t>(8 * wire::AckFrame::kBitmapBytesMax, ack_.largest);
    for (size_t i = 0; i < bits; ++i) {
      const bool arrived = i / 8 >= ack_.bitmap.size() || (ack_.bitmap[i / 8] >> (i % 8) & 1) != 0;
      if (arrived) numbers.insert(ack_.largest - 1 - i);
    }
    EXPECT_TRUE(ack_.bitmap.empty() || ack_.bitmap.back() != 0xFF) << "it could be shorter";
    return numbers;
  }
  using Set = std::set<PacketNumber>;

  crypto::ReplayWindow window_;
  AckTracker tracker_;
  std::vector<uint8_t> bitmap_;
  wire::AckFrame ack_;
};

TEST_F(AckTrackerTest, on_packet__nothing_due_at_first) {
  EXPECT_FALSE(tracker_.has_news());
  EXPECT_TRUE(tracker_.deadline().is_never());
}

TEST_F(AckTrackerTest, on_packet__acks_alone_ask_for_nothing) {
  arrive({0, 100, false, false, false});
  EXPECT_FALSE(tracker_.has_news());
  EXPECT_TRUE(tracker_.deadline().is_never());
}

TEST_F(AckTrackerTest, on_packet__in_order_waits_for_company) {
  arrive(0, at(10));
  EXPECT_TRUE(tracker_.has_news());
  EXPECT_EQ(tracker_.deadline(), at(10) + kAckDelayMax);
  arrive(1, at(20));
  EXPECT_EQ(tracker_.deadline(), at(10) + kAckDelayMax) << "the first one counts";
  EXPECT_FALSE(tracker_.is_due(at(20)));
  EXPECT_TRUE(tracker_.is_due(at(10) + kAckDelayMax));
}

TEST_F(AckTrackerTest, on_packet__at_once_when_asked) {
  arrive({0, 100, true, true, false}, at(5));
  EXPECT_TRUE(tracker_.is_due(at(5)));
}

TEST_F(AckTrackerTest, on_packet__at_once_when_marked) {
  arrive({0, 100, true, false, true}, at(5));
  EXPECT_TRUE(tracker_.is_due(at(5)));
  make_ack();
  EXPECT_EQ(ack_.ce_count, 1u);
}

TEST_F(AckTrackerTest, on_packet__at_once_when_a_gap_appears_or_is_filled) {
  arrive(0, at(1));
  arrive(2, at(2));
  EXPECT_TRUE(tracker_.is_due(at(2)));
  make_ack();
  arrive(3, at(3));
  EXPECT_FALSE(tracker_.is_due(at(3)));
  arrive(1, at(4));
  EXPECT_TRUE(tracker_.is_due(at(4)));
  EXPECT_EQ(make_ack(), (Set{0, 1, 2, 3}));
}

TEST_F(AckTrackerTest, on_packet__at_once_when_the_first_number_is_missing) {
  arrive(1, at(5));
  EXPECT_TRUE(tracker_.is_due(at(5)));
}

TEST_F(AckTrackerTest, on_packet__at_once_after_a_burst_of_bytes) {
  for (PacketNumber n = 0; n < 8; ++n) {
    EXPECT_FALSE(tracker_.is_due(at(0))) << n;
    arrive({n, 8192, true, false, false}, at(0));
  }
  EXPECT_TRUE(tracker_.is_due(at(0)));
}

TEST_F(AckTrackerTest, on_packet__at_once_before_a_bitmap_overflows) {
  PacketNumber n = 0;
  for (; n < kAckEveryPackets - 1; ++n) arrive({n, 40, true, false, false}, at(0));
  EXPECT_FALSE(tracker_.is_due(at(0)));
  arrive({n, 40, true, false, false}, at(0));
  EXPECT_TRUE(tracker_.is_due(at(0)));
}

TEST_F(AckTrackerTest, make_ack__says_how_long_the_largest_waited) {
  arrive(0, at(100));
  arrive(1, at(300));
  make_ack(at(450));
  EXPECT_EQ(ack_.path, base::PathId{3});
  EXPECT_EQ(ack_.largest, 1u);
  EXPECT_EQ(ack_.delay_us, 150u);
}

TEST_F(AckTrackerTest, make_ack__settles_what_was_due) {
  arrive({0, 100, true, true, false});
  make_ack();
  EXPECT_FALSE(tracker_.has_news());
  EXPECT_TRUE(tracker_.deadline().is_never());
  tracker_.repeat();
  EXPECT_TRUE(tracker_.has_news());
  EXPECT_EQ(make_ack(), (Set{0}));
}

TEST_F(AckTrackerTest, repeat__nothing_to_repeat_before_the_first_packet) {
  tracker_.repeat();
  EXPECT_FALSE(tracker_.has_news());
}

TEST_F(AckTrackerTest, make_ack__reports_all_that_an_ack_can_hold) {
  constexpr size_t kReach = 8 * wire::AckFrame::kBitmapBytesMax;
  PacketNumber next = 0;
  base::Random random(1);
  for (int round = 0; round < 300; ++round) {
    for (uint64_t n = 1 + random.below(20); n > 0; --n) arrive(next++);
    const Set reported = make_ack();
    ASSERT_EQ(reported.size(), std::min<size_t>(next, kReach + 1));
    ASSERT_EQ(*reported.begin(), next - reported.size());
    ASSERT_TRUE(ack_.bitmap.empty()) << "nothing is missing";
  }
}

TEST_F(AckTrackerTest, make_ack__repeats_do_not_push_reports_out) {
  arrive(0);
  arrive(1);
  make_ack();
  for (int i = 0; i < 6; ++i) {
    tracker_.repeat();
    EXPECT_EQ(make_ack(), (Set{0, 1}));
  }
}

TEST_F(AckTrackerTest, make_ack__reaches_down_to_a_packet_that_came_late) {
  arrive(0);
  for (PacketNumber n = 2; n < 12; n += 2) {  // five gaps, five acks
    arrive(n);
    make_ack();
  }
  arrive(1);
  EXPECT_EQ(make_ack(), (Set{0, 1, 2, 4, 6, 8, 10}));
}

TEST_F(AckTrackerTest, make_ack__bitmap_is_bounded) {
  arrive(0);
  make_ack();
  arrive(5000);
  make_ack();
  EXPECT_EQ(ack_.bitmap.size(), wire::AckFrame::kBitmapBytesMax);
}

TEST_F(AckTrackerTest, make_ack__agrees_with_a_set_of_numbers) {
  for (uint64_t seed = 0; seed < 100; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    base::Random random(seed);
    tracker_ = AckTracker();
    window_ = crypto::ReplayWindow();
    Set arrived;
    Set unreported;
    for (int i = 0; i < 400; ++i) {
      const PacketNumber largest = arrived.empty() ? 0 : *arrived.rbegin();
      const PacketNumber number = random.chance(0.8)
                                      ? largest + random.below(3)
                                      : largest - random.below(std::min<uint64_t>(largest + 1, 90));
      if (arrived.contains(number)) continue;
      arrived.insert(number);
      unreported.insert(number);
      arrive(number);
      if (!random.chance(0.3)) continue;
      for (const PacketNumber n : make_ack()) {
        ASSERT_TRUE(arrived.contains(n)) << n;
        unreported.erase(n);
      }
      ASSERT_TRUE(unreported.empty()) << *unreported.begin();
    }
  }
}

}  // namespace
}  // namespace securefabric::transport
