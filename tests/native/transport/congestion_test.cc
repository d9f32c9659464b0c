#include "transport/congestion.h"

#include <gtest/gtest.h>

#include "base/random.h"
#include "transport/limits.h"

namespace securefabric::transport {
namespace {

using base::Duration;
using base::Instant;

Instant at(int64_t micros) {
  return Instant::from_nanos(micros * 1000);
}

// One round trip in which the whole window is sent and acknowledged.
void fill_and_ack(CongestionWindow& window, Instant sent_at) {
  std::vector<uint64_t> packets;
  while (window.room() > 0) {
    packets.push_back(std::min<uint64_t>(window.room(), kDatagramBytesJumbo));
    window.on_sent(packets.back(), sent_at);
  }
  for (const uint64_t bytes : packets) window.on_acked(bytes, sent_at);
}

TEST(CongestionWindow, room__counts_what_is_in_flight) {
  CongestionWindow window;
  EXPECT_EQ(window.room(), kWindowInitial);
  window.on_sent(1000, at(1));
  EXPECT_EQ(window.room(), kWindowInitial - 1000);
  window.on_sent(kWindowInitial, at(1));  // one packet may overshoot
  EXPECT_EQ(window.room(), 0u);
  window.on_discarded(1000);
  EXPECT_EQ(window.in_flight(), kWindowInitial);
}

TEST(CongestionWindow, on_packet_bytes__the_first_window_has_room_for_some) {
  CongestionWindow window;
  window.on_packet_bytes(kDatagramBytesMin);
  EXPECT_EQ(window.window(), kWindowInitial);
  window.on_packet_bytes(kDatagramBytesMax);
  EXPECT_EQ(window.window(), kPacedPackets * kDatagramBytesMax);
  window.on_persistent_loss();
  window.on_packet_bytes(kDatagramBytesMax);
  EXPECT_EQ(window.window(), kWindowRestart) << "it met congestion";
}

TEST(CongestionWindow, on_acked__slow_start_to_the_ceiling) {
  CongestionWindow window;
  uint64_t before = window.window();
  for (int round = 0; round < 6; ++round) {
    fill_and_ack(window, at(round));
    EXPECT_GE(window.window(), std::min(2 * before, kWindowMax));
    before = window.window();
  }
  EXPECT_EQ(window.window(), kWindowMax);
}

TEST(CongestionWindow, on_acked__no_growth_while_the_sender_is_idle) {
  CongestionWindow window;
  for (int i = 0; i < 1000; ++i) {
    window.on_sent(1000, at(i));
    window.on_acked(1000, at(i));
  }
  EXPECT_EQ(window.window(), kWindowInitial);
}

// One round trip of a window's worth of packets that ends with this delay.
void round_trip(CongestionWindow& window, Duration delay, Instant sent_at) {
  std::vector<uint64_t> packets;
  while (window.room() > 0) {
    packets.push_back(std::min<uint64_t>(window.room(), kDatagramBytesJumbo));
    window.on_sent(packets.back(), sent_at);
  }
  window.on_delay(delay, sent_at, sent_at + delay);
  for (const uint64_t bytes : packets) window.on_acked(bytes, sent_at);
}

TEST(CongestionWindow, on_delay__holds_the_queue_at_the_target) {
  // The window stands in a queue that drains at 100 bytes per microsecond behind 200 us.
  constexpr int64_t kBase = 200;
  constexpr uint64_t kRate = 100;
  CongestionWindow window;
  int64_t now = 0;
  const auto delay = [&] { return kBase + static_cast<int64_t>(window.window() / kRate); };
  window.on_delay(Duration::micros(kBase), at(0), at(kBase));
  for (int round = 0; round < 500; ++round) {
    round_trip(window, Duration::micros(delay()), at(now));
    now += delay() + 1;
  }
  // At 71,000 bytes the queue and its target are 710 us: some steps above and one cut below.
  EXPECT_LE(window.window(), 71'000u + 2 * kWindowStep);
  EXPECT_GE(window.window(), 42'000u);
}

TEST(CongestionWindow, on_delay__one_decrease_per_round_trip_and_never_more_than_half) {
  CongestionWindow window;
  window.on_delay(Duration::micros(100), at(0), at(100));
  window.on_delay(Duration::seconds(1), at(200), at(300));
  EXPECT_EQ(window.window(), kWindowInitial - kWindowInitial / 2);
  EXPECT_TRUE(window.is_congested());
  window.on_delay(Duration::seconds(1), at(299), at(400));
  EXPECT_EQ(window.window(), kWindowInitial / 2) << "it left before the decrease";
  window.on_delay(Duration::micros(100), at(400), at(500));
  EXPECT_FALSE(window.is_congested());
  EXPECT_EQ(window.queueing_delay(), Duration());
}

TEST(CongestionWindow, on_delay__a_route_that_became_longer_is_learnt) {
  CongestionWindow window;
  window.on_delay(Duration::micros(100), at(0), at(100));
  const int64_t period = kBaseDelayPeriod.micros();
  window.on_delay(Duration::millis(5), at(period), at(period + 1));
  EXPECT_GT(window.queueing_delay(), Duration()) << "still remembered";
  for (int i = 1; i <= 2; ++i) {
    window.on_delay(Duration::millis(5), at((1 + i) * period), at((1 + i) * period + 1));
  }
  EXPECT_EQ(window.queueing_delay(), Duration());
  EXPECT_EQ(window.target(), Duration::millis(5));
}

TEST(CongestionWindow, target__is_higher_for_small_windows) {
  CongestionWindow window;
  EXPECT_EQ(window.window() * 4, kWindowOfTarget);
  EXPECT_EQ(window.target(), kQueueingDelayTarget * 2);
  for (int i = 0; i < 20; ++i) window.on_marked(16, 16, at(100 * i), at(100 * i));
  EXPECT_EQ(window.target(), kQueueingDelayTarget * 8) << "a quarter of a packet";
  for (int round = 0; round < 200; ++round) fill_and_ack(window, at(3000 + round));
  EXPECT_EQ(window.target(), kQueueingDelayTarget);
}

// A path that is opened in the middle of traffic sees the queue first, never the empty route.
TEST(CongestionWindow, assume_base__a_queue_is_not_taken_for_the_route) {
  CongestionWindow window;
  window.assume_base(Duration::micros(100), at(0));
  window.on_delay(Duration::millis(9), at(1), at(9001));
  EXPECT_EQ(window.queueing_delay(), Duration::micros(8900));
  EXPECT_LT(window.window(), kWindowInitial);
  CongestionWindow fooled;
  fooled.on_delay(Duration::millis(9), at(1), at(9001));
  EXPECT_EQ(fooled.queueing_delay(), Duration());
}

// Windows between one packet and two are full with one in flight.
TEST(CongestionWindow, on_acked__a_window_of_one_packet_and_a_half_grows) {
  CongestionWindow window;
  window.on_delay(Duration::micros(100), at(0), at(100));
  for (int i = 1; window.window() > 2 * kDatagramBytesJumbo; ++i) {
    window.on_marked(16, 16, at(1000 * i), at(1000 * i));
  }
  const uint64_t before = window.window();
  ASSERT_GT(before, kDatagramBytesJumbo);
  for (int round = 0; round < 3; ++round) {
    window.on_sent(kDatagramBytesJumbo, at(100'000 + round));
    window.on_acked(kDatagramBytesJumbo, at(100'000 + round));
  }
  EXPECT_GT(window.window(), before);
}

TEST(CongestionWindow, on_marked__decreases_by_the_share_of_marks) {
  CongestionWindow all;
  for (int i = 0; i < 20; ++i) all.on_marked(16, 16, at(100 * i), at(100 * i));
  EXPECT_EQ(all.window(), kWindowMin);
  CongestionWindow few;
  few.on_marked(1, 64, at(1), at(2));
  EXPECT_LT(few.window(), kWindowInitial);
  EXPECT_GT(few.window(), kWindowInitial * 9 / 10);
  EXPECT_TRUE(few.is_congested());
}

TEST(CongestionWindow, on_lost__rare_losses_on_an_empty_queue_are_not_congestion) {
  CongestionWindow window;
  base::Random random(3);
  for (int i = 0; i < 20'000; ++i) {
    window.on_sent(1000, at(10 * i));
    if (random.chance(0.01)) {
      window.on_lost(1000, at(10 * i), at(10 * i + 5));
    } else {
      window.on_acked(1000, at(10 * i));
    }
  }
  EXPECT_EQ(window.window(), kWindowInitial);
  // With a long queue, one is enough.
  window.on_delay(Duration::micros(100), at(300'000), at(300'100));
  window.on_delay(Duration::micros(1200), at(300'200), at(301'400));
  const uint64_t before = window.window();
  window.on_sent(1000, at(302'000));
  window.on_lost(1000, at(302'000), at(302'100));
  EXPECT_EQ(window.window(), before * 7 / 10);
}

TEST(CongestionWindow, on_spurious_loss__takes_the_decrease_back) {
  CongestionWindow window(/*heeds_delay=*/false);
  for (int i = 0; i < 3; ++i) window.on_sent(1000, at(1));
  window.on_lost(1000, at(1), at(100));
  window.on_lost(1000, at(1), at(100));
  window.on_spurious_loss(at(1));
  EXPECT_EQ(window.window(), kWindowInitial * 7 / 10) << "the other may be lost indeed";
  window.on_spurious_loss(at(1));
  EXPECT_EQ(window.window(), kWindowInitial);
  window.on_spurious_loss(at(1));
  EXPECT_EQ(window.window(), kWindowInitial);
}

TEST(CongestionWindow, on_lost__one_decrease_per_round_trip) {
  CongestionWindow window(/*heeds_delay=*/false);
  for (int i = 0; i < 6; ++i) window.on_sent(1000, at(1));
  window.on_lost(1000, at(1), at(100));
  const uint64_t once = kWindowInitial * 7 / 10;
  EXPECT_EQ(window.window(), once);
  window.on_lost(1000, at(2), at(100));
  window.on_lost(1000, at(99), at(120));
  EXPECT_EQ(window.window(), once);
  window.on_lost(1000, at(101), at(200));
  EXPECT_EQ(window.window(), std::max(once * 7 / 10, kWindowRestart));
  EXPECT_EQ(window.in_flight(), 2000u);
}

TEST(CongestionWindow, on_lost__then_growth_is_additive) {
  CongestionWindow window(/*heeds_delay=*/false);
  window.on_sent(1000, at(1));
  window.on_lost(1000, at(1), at(2));
  const uint64_t before = window.window();
  fill_and_ack(window, at(1));  // sent before the recovery began: no growth
  EXPECT_EQ(window.window(), before);
  for (int round = 0; round < 8; ++round) fill_and_ack(window, at(3 + round));
  EXPECT_GT(window.window(), before);
  EXPECT_LE(window.window(), before + 8 * kWindowStep);
}

TEST(CongestionWindow, on_lost__never_below_the_floor) {
  CongestionWindow window(/*heeds_delay=*/false);
  for (int i = 0; i < 100; ++i) {
    window.on_sent(1000, at(10 * i + 1));
    window.on_lost(1000, at(10 * i + 1), at(10 * i + 2));
  }
  EXPECT_EQ(window.window(), kWindowRestart) << "there is no queue to shorten";
}

TEST(CongestionWindow, on_persistent_loss__comes_back_by_slow_start) {
  CongestionWindow window;
  for (int round = 0; round < 10; ++round) fill_and_ack(window, at(round));
  // One outage, many timeouts: the threshold is half of what there was before it.
  for (int i = 0; i < 8; ++i) window.on_persistent_loss();
  EXPECT_EQ(window.window(), kWindowRestart);
  int rounds = 0;
  for (; window.window() < kWindowMax / 2; ++rounds) {
    ASSERT_LT(rounds, 15);
    fill_and_ack(window, at(20 + rounds));
  }
}

TEST(CongestionWindowDeathTest, on_acked__more_than_in_flight_is_our_bug) {
  CongestionWindow window;
  EXPECT_DEATH(window.on_acked(1, at(0)), "broken invariant");
  EXPECT_DEATH(window.on_discarded(1), "broken invariant");
}

TEST(CongestionWindow, every_call__stays_inside_the_bounds) {
  base::Random random(4);
  CongestionWindow window;
  std::vector<std::pair<uint64_t, Instant>> packets;
  uint64_t in_flight = 0;
  for (int i = 0; i < 20'000; ++i) {
    if (window.room() > 0 && random.chance(0.6)) {
      packets.emplace_back(1 + random.below(kDatagramBytesJumbo), at(i));
      window.on_sent(packets.back().first, at(i));
      in_flight += packets.back().first;
    } else if (!packets.empty()) {
      const auto [bytes, sent_at] = packets.front();
      packets.erase(packets.begin());
      in_flight -= bytes;
      window.on_delay(Duration::micros(1 + static_cast<int64_t>(random.below(3000))), sent_at,
                      at(i));
      window.on_marked(random.below(2), 1, sent_at, at(i));
      const bool is_lost = random.chance(0.05);
      is_lost ? window.on_lost(bytes, sent_at, at(i)) : window.on_acked(bytes, sent_at);
      if (is_lost && random.chance(0.3)) window.on_spurious_loss(sent_at);
    }
    ASSERT_EQ(window.in_flight(), in_flight);
    ASSERT_GE(window.window(), kWindowMin);
    ASSERT_LE(window.window(), kWindowMax);
  }
}

}  // namespace
}  // namespace securefabric::transport
