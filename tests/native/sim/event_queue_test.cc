#include "sim/event_queue.h"

#include <gtest/gtest.h>

#include "base/random.h"

namespace securefabric::sim {
namespace {

using base::Instant;

TEST(EventQueue, pop__by_time_then_by_order_of_pushing) {
  EventQueue<std::pair<int64_t, int>> queue;
  base::Random random(1);
  for (int i = 0; i < 1'000; ++i) {
    const auto at = static_cast<int64_t>(random.below(50));
    queue.push(Instant::from_nanos(at), {at, i});
  }
  EXPECT_EQ(queue.size(), 1'000u);
  std::pair<int64_t, int> last{-1, -1};
  while (!queue.empty()) {
    const Instant at = queue.next_at();
    const auto event = queue.pop();
    EXPECT_EQ(at.nanos(), event.first);
    EXPECT_LT(last, event);
    last = event;
  }
  EXPECT_TRUE(queue.next_at().is_never());
}

}  // namespace
}  // namespace securefabric::sim
