// The only source of secrets: the kernel's generator.
#pragma once

#include "base/bytes.h"
#include "base/result.h"

namespace securefabric::net {

// Fills all of `out` from getrandom(2), which waits at early boot until the generator is seeded.
// On an error nothing in `out` may be used.
base::Status fill_entropy(base::MutableBytes out);

}  // namespace securefabric::net
