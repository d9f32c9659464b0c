// A seeded generator for everything random that is not a secret: simulation, jitter, tie breaks.
//
// xoshiro256** seeded through splitmix64 (Blackman and Vigna, 2018). The same seed gives the same
// sequence on every machine, which std::uniform_int_distribution does not promise. Keys, boot ids
// and challenges come from the operating system through net/entropy.h, never from here.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "base/bytes.h"

namespace securefabric::base {

class Random {
 public:
  explicit Random(uint64_t seed);

  uint64_t next();
  // Uniform in [0, bound); bound > 0. The modulo bias is below 2^-32 for every bound used here.
  uint64_t below(uint64_t bound);
  // True with probability `probability`, in [0, 1].
  bool chance(double probability);
  void fill(MutableBytes out);

 private:
  std::array<uint64_t, 4> state_;
};

}  // namespace securefabric::base
