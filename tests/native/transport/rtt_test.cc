#include "transport/rtt.h"

#include <gtest/gtest.h>

#include "transport/limits.h"

namespace securefabric::transport {
namespace {

using base::Duration;

TEST(RttEstimator, pto__before_any_sample) {
  const RttEstimator rtt;
  EXPECT_FALSE(rtt.has_sample());
  EXPECT_EQ(rtt.pto(), kInitialRtt * 2);
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

TEST(RttEstimator, on_sample__ack_delay_is_subtracted_but_never_below_the_minimum) {
  RttEstimator rtt;
  rtt.on_sample(Duration::micros(800), Duration());
  rtt.on_sample(Duration::micros(1800), Duration::micros(1000));
  EXPECT_EQ(rtt.srtt(), Duration::micros(800));
  rtt.on_sample(Duration::micros(1600), Duration::seconds(4000));  // a peer that lies
  EXPECT_EQ(rtt.srtt(), Duration::micros(900));
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
}

TEST(RttEstimator, loss_delay__follows_the_slower_of_latest_and_smoothed) {
  RttEstimator rtt;
  rtt.on_sample(Duration::millis(8), Duration());
  EXPECT_EQ(rtt.loss_delay(), Duration::millis(10));
  rtt.on_sample(Duration::millis(16), Duration());
  EXPECT_EQ(rtt.loss_delay(), Duration::millis(20));
  RttEstimator fast;
  fast.on_sample(Duration::micros(20), Duration());
  EXPECT_EQ(fast.loss_delay(), Duration::millis(1));
}

}  // namespace
}  // namespace securefabric::transport
