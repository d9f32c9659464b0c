#include "transport/rtt.h"

#include <gtest/gtest.h>

#include "transport/limits.h"

namespace securefabric::transport {
namespace {

using base::Duration;

TEST(RttEstimator, pto__before_any_sample) {
  const RttEstimator rtt;
  EXPECT_FALSE(rtt.has_sample());
  EXPECT_EQ(rtt.tail_probe(), kInitialRtt * 2);
  EXPECT_EQ(rtt.pto(), kPtoMin);
  EXPECT_EQ(rtt.loss_delay(), kInitialRtt + kInitialRtt / 4);
}

TEST(RttEstimator, on_sample__first_one_is_taken_as_it_is) {
  RttEstimator rtt;
  rtt.on_sample(Duration::millis(8), Duration::millis(5));
  EXPECT_EQ(rtt.srtt(), Duration::millis(8));
  EXPECT_EQ(rtt.min_rtt(), Duration::millis(8));
  EXPECT_EQ(rtt.rttvar(), Duration::millis(4));
}

TEST(RttEstimator, on_sample__smooths_as_rfc_9002) {
  RttEstimator rtt;
  rtt.on_sample(Duration::micros(800), Duration());
  rtt.on_sample(Duration::micros(1600), Duration());
  EXPECT_EQ(rtt.srtt(), Duration::micros(900));    // 7/8 * 800 + 1/8 * 1600
  EXPECT_EQ(rtt.rttvar(), Duration::micros(500));  // 3/4 * 400 + 1/4 * 800
  EXPECT_EQ(rtt.latest(), Duration::micros(1600));
  EXPECT_EQ(rtt.min_rtt(), Duration::micros(800));
}

TEST(RttEstimator, on_sample__what_hosts_take_is_not_the_network_s) {
  RttEstimator rtt;
  rtt.on_sample(Duration::micros(800), Duration());
  rtt.on_sample(Duration::micros(1800), Duration::micros(1000));
  EXPECT_EQ(rtt.delay(), Duration::micros(800));
  EXPECT_EQ(rtt.latest_delay(), Duration::micros(800));
  EXPECT_EQ(rtt.srtt(), Duration::micros(925)) << "timers have to wait for hosts too";
  rtt.on_sample(Duration::micros(1600), Duration::seconds(4000));  // a peer that lies
  EXPECT_EQ(rtt.latest_delay(), Duration::micros(1600));
  rtt.on_sample(Duration::micros(1600), Duration::micros(-5));
  EXPECT_EQ(rtt.latest_delay(), Duration::micros(1600));
}

TEST(RttEstimator, grow_old__a_shorter_sample_starts_over) {
  RttEstimator rtt;
  for (int i = 0; i < 50; ++i) rtt.on_sample(Duration::micros(24'000), Duration());
  rtt.grow_old();
  EXPECT_EQ(rtt.delay(), Duration::micros(24'000)) << "until there is one";
  rtt.on_sample(Duration::micros(800), Duration());
  EXPECT_EQ(rtt.delay(), Duration::micros(800));
  EXPECT_EQ(rtt.srtt(), Duration::micros(800)) << "losses are noticed as soon as on a new path";
  EXPECT_EQ(rtt.rttvar(), Duration::micros(400));
  EXPECT_EQ(rtt.min_rtt(), Duration::micros(800));
  rtt.on_sample(Duration::micros(1600), Duration());
  EXPECT_EQ(rtt.delay(), Duration::micros(900));
}

TEST(RttEstimator, grow_old__one_sample_does_not_make_a_good_path_bad) {
  RttEstimator rtt;
  rtt.on_sample(Duration::micros(100), Duration());
  rtt.grow_old();
  rtt.on_sample(Duration::micros(900), Duration());
  EXPECT_EQ(rtt.delay(), Duration::micros(200));
  rtt.on_sample(Duration::micros(180), Duration());
  EXPECT_EQ(rtt.srtt(), Duration::nanos(197'500)) << "it was old for one sample only";
}

TEST(RttEstimator, pto__stays_between_floor_and_ceiling) {
  RttEstimator rtt;
  rtt.on_sample(Duration::micros(50), Duration());
  EXPECT_EQ(rtt.pto(), kPtoMin);
  RttEstimator slow;
  slow.on_sample(Duration::millis(100), Duration());
  EXPECT_EQ(slow.pto(), Duration::millis(300) + kAckDelayMax);
  RttEstimator slower;
  slower.on_sample(Duration::seconds(3), Duration());
  EXPECT_EQ(slower.pto(), kPtoMax);
  EXPECT_EQ(slower.tail_probe(), kPtoMax);
}

TEST(RttEstimator, tail_probe__is_one_and_a_half_round_trips_where_they_are_steady) {
  RttEstimator rtt;
  for (int i = 0; i < 50; ++i) rtt.on_sample(Duration::micros(300), Duration());
  EXPECT_EQ(rtt.tail_probe(), Duration::micros(450));
  rtt.on_sample(Duration::millis(8), Duration());
  EXPECT_GT(rtt.tail_probe(), Duration::millis(8)) << "after a stall it waits for the next";
}

TEST(RttEstimator, loss_delay__follows_the_slower_of_latest_and_smoothed) {
  RttEstimator rtt;
  rtt.on_sample(Duration::millis(8), Duration());
  EXPECT_EQ(rtt.loss_delay(), Duration::millis(10));
  rtt.on_sample(Duration::millis(16), Duration());
  EXPECT_EQ(rtt.loss_delay(), Duration::millis(20));
  RttEstimator fast;
  fast.on_sample(Duration::micros(20), Duration());
  EXPECT_EQ(fast.loss_delay(), Duration::micros(20) + kReorderingMin);
}

TEST(RttEstimator, on_spurious_loss__waits_longer_and_forgets_in_time) {
  RttEstimator rtt;
  rtt.on_sample(Duration::micros(100), Duration());
  const Duration before = rtt.loss_delay();
  rtt.on_spurious_loss(before + Duration::millis(2));
  EXPECT_EQ(rtt.loss_delay(), before + Duration::micros(2500));
  rtt.on_spurious_loss(before + Duration::millis(1));
  EXPECT_EQ(rtt.loss_delay(), before + Duration::micros(2500)) << "the most that was needed";
  rtt.on_spurious_loss(Duration::seconds(2));
  EXPECT_EQ(rtt.loss_delay(), before + kReorderingMax);
  for (int i = 0; i < 20 * kReorderingMemory; ++i) rtt.on_sample(Duration::micros(100), Duration());
  EXPECT_LE(rtt.loss_delay(), before + Duration::micros(1));
}

}  // namespace
}  // namespace securefabric::transport
