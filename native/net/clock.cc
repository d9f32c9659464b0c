#include "net/clock.h"

#include <time.h>

#include "base/check.h"

namespace securefabric::net {

base::Instant now() {
  timespec time{};
  SF_CHECK(::clock_gettime(CLOCK_MONOTONIC, &time) == 0);
  return base::Instant::from_nanos(int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec);
}

}  // namespace securefabric::net
