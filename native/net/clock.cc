#include "net/clock.h"

#include <sched.h>
#include <time.h>

#include "base/check.h"

namespace securefabric::net {

base::Instant now() {
  timespec time{};
  SF_CHECK(::clock_gettime(CLOCK_MONOTONIC, &time) == 0);
  return base::Instant::from_nanos(int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec);
}

base::Duration since_realtime() {
  timespec time{};
  SF_CHECK(::clock_gettime(CLOCK_REALTIME, &time) == 0);
  const int64_t wall = int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
  return base::Duration::nanos(now().nanos() - wall);
}

void give_way() {
  ::sched_yield();
}

}  // namespace securefabric::net
