// The only clock that the product reads on sockets, and how a thread that polls gives way.
#pragma once

#include "base/time.h"

namespace securefabric::net {

// CLOCK_MONOTONIC through the vDSO: about 25 ns, never decreases, stands still in suspend.
base::Instant now();
// What to add to the nanoseconds of CLOCK_REALTIME, in which the kernel stamps what it receives, to
// make them instants. Steps of the wall clock move it, so it is asked for with every batch.
base::Duration since_realtime();
// Offers the core to other threads.
void give_way();

}  // namespace securefabric::net
