#include "net/clock.h"

#include <gtest/gtest.h>

namespace securefabric::net {
namespace {

TEST(Clock, now__never_decreases_and_moves) {
  const base::Instant start = now();
  EXPECT_GT(start.nanos(), 0);
  base::Instant last = start;
  for (int i = 0; i < 10'000; ++i) {
    const base::Instant current = now();
    ASSERT_GE(current, last);
    last = current;
  }
  EXPECT_GT(last, start);
}

}  // namespace
}  // namespace securefabric::net
