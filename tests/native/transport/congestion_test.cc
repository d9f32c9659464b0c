#include "transport/congestion.h"

#include <gtest/gtest.h>

#include "base/random.h"
#include "transport/limits.h"

namespace securefabric::transport {
namespace {

using base::Instant;

Instant at(int64_t micros) {
  return Instant::from_nanos(micros * 1000);
}

// One round trip in which the whole window is sent and acknowledged.
void fill_and_ack(CongestionWindow& window, Instant sent_at) {
  std::vector<uint64_t> packets;
  while (window.room() > 0) {
    packets.push_back(std::min<uint64_t>(window.room(), kDatagramBytesMax));
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

TEST(CongestionWindow, on_acked__slow_start_to_the_ceiling) {
  CongestionWindow window;
  uint64_t before = window.window();
  for (int round = 0; round < 4; ++round) {
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

TEST(CongestionWindow, on_lost__one_decrease_per_round_trip) {
  CongestionWindow window;
  for (int i = 0; i < 6; ++i) window.on_sent(1000, at(1));
  window.on_lost(1000, at(1), at(100));
  const uint64_t once = kWindowInitial * 7 / 10;
  EXPECT_EQ(window.window(), once);
  window.on_lost(1000, at(2), at(100));
  window.on_lost(1000, at(99), at(120));
  EXPECT_EQ(window.window(), once);
  window.on_lost(1000, at(101), at(200));
  EXPECT_EQ(window.window(), once * 7 / 10);
  EXPECT_EQ(window.in_flight(), 2000u);
}

TEST(CongestionWindow, on_lost__then_growth_is_additive) {
  CongestionWindow window;
  window.on_sent(1000, at(1));
  window.on_lost(1000, at(1), at(2));
  const uint64_t before = window.window();
  fill_and_ack(window, at(1));  // sent before the recovery began: no growth
  EXPECT_EQ(window.window(), before);
  for (int round = 0; round < 8; ++round) fill_and_ack(window, at(3 + round));
  EXPECT_GT(window.window(), before);
  EXPECT_LE(window.window(), before + 8 * 4 * kDatagramBytesMax);
}

TEST(CongestionWindow, on_lost__never_below_the_floor) {
  CongestionWindow window;
  for (int i = 0; i < 100; ++i) {
    window.on_sent(1000, at(10 * i + 1));
    window.on_lost(1000, at(10 * i + 1), at(10 * i + 2));
  }
  EXPECT_EQ(window.window(), kWindowMin);
}

TEST(CongestionWindow, on_persistent_loss__comes_back_by_slow_start) {
  CongestionWindow window;
  for (int round = 0; round < 10; ++round) fill_and_ack(window, at(round));
  // One outage, many timeouts: the threshold is half of what there was before it.
  for (int i = 0; i < 8; ++i) window.on_persistent_loss();
  EXPECT_EQ(window.window(), kWindowMin);
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
      packets.emplace_back(1 + random.below(kDatagramBytesMax), at(i));
      window.on_sent(packets.back().first, at(i));
      in_flight += packets.back().first;
    } else if (!packets.empty()) {
      const auto [bytes, sent_at] = packets.front();
      packets.erase(packets.begin());
      in_flight -= bytes;
      random.chance(0.97) ? window.on_acked(bytes, sent_at) : window.on_lost(bytes, sent_at, at(i));
    }
    ASSERT_EQ(window.in_flight(), in_flight);
    ASSERT_GE(window.window(), kWindowMin);
    ASSERT_LE(window.window(), kWindowMax);
  }
}

}  // namespace
}  // namespace securefabric::transport
