#include "base/time.h"

#include <gtest/gtest.h>

namespace securefabric::base {
namespace {

TEST(Duration, units__convert_to_each_other) {
  EXPECT_EQ(Duration::seconds(2), Duration::millis(2000));
  EXPECT_EQ(Duration::millis(3), Duration::micros(3000));
  EXPECT_EQ(Duration::micros(4), Duration::nanos(4000));
  EXPECT_EQ(Duration::nanos(2'999'999).millis(), 2);
  EXPECT_DOUBLE_EQ(Duration::millis(1500).seconds(), 1.5);
}

TEST(Duration, arithmetic__may_be_negative) {
  const Duration d = Duration::millis(1) - Duration::millis(3);
  EXPECT_EQ(d.millis(), -2);
  EXPECT_EQ((d * 3).millis(), -6);
  EXPECT_EQ((d / 2).millis(), -1);
}

TEST(Duration, forever__can_be_added_to_itself) {
  EXPECT_GT(Duration::forever() + Duration::forever(), Duration::forever());
}

TEST(Instant, plus__saturates_at_never) {
  EXPECT_TRUE((Instant::never() + Duration::nanos(0)).is_never());
  EXPECT_TRUE((Instant::never() + Duration::forever()).is_never());
  const Instant late = Instant::from_nanos(std::numeric_limits<int64_t>::max() - 10);
  EXPECT_FALSE((late + Duration::nanos(9)).is_never());
  EXPECT_TRUE((late + Duration::nanos(10)).is_never());
  EXPECT_TRUE((late + Duration::seconds(1)).is_never());
}

TEST(Instant, plus__starts_before_the_origin) {
  const Instant early = Instant::from_nanos(-5);
  EXPECT_EQ((early + Duration::nanos(7)).nanos(), 2);
  EXPECT_FALSE((early + Duration::forever()).is_never());
  EXPECT_EQ((early + Duration::nanos(-5)).nanos(), -10);
}

TEST(Instant, difference__is_a_duration) {
  const Instant a = Instant::from_nanos(100);
  const Instant b = Instant::from_nanos(130);
  EXPECT_EQ(b - a, Duration::nanos(30));
  EXPECT_EQ(a - b, Duration::nanos(-30));
  EXPECT_EQ(b - Duration::nanos(30), a);
}

TEST(Instant, earlier__picks_the_smaller) {
  const Instant a = Instant::from_nanos(1);
  EXPECT_EQ(earlier(a, Instant::never()), a);
  EXPECT_EQ(earlier(Instant::never(), a), a);
  EXPECT_EQ(longer(Duration::nanos(1), Duration::nanos(2)), Duration::nanos(2));
  EXPECT_EQ(shorter(Duration::nanos(1), Duration::nanos(2)), Duration::nanos(1));
}

}  // namespace
}  // namespace securefabric::base
