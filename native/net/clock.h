// The only clock that the product reads on sockets.
#pragma once

#include "base/time.h"

namespace securefabric::net {

// CLOCK_MONOTONIC through the vDSO: about 25 ns, never decreases, stands still in suspend.
base::Instant now();

}  // namespace securefabric::net
