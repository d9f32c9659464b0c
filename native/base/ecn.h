// The two ECN bits of the IP header, with the code points of RFC 3168 §5.
#pragma once

#include <cstdint>

namespace securefabric::base {

enum class Ecn : uint8_t {
  kNotEct = 0,  // the sender does not take part, or something on the way erased the bits
  kEct1 = 1,
  kEct0 = 2,  // what securefabric sends
  kCe = 3,    // congestion experienced: a queue on the way marked it
};

}  // namespace securefabric::base
