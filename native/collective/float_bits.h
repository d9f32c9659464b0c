// The four floating-point types of the reductions: their bits, their order and the half types'
// conversions.
//
// Everything here is branch-free integer arithmetic where it can be, so that a loop over elements
// becomes vector code with any instruction set, and gives the same bits with every one of them:
// ranks of one job may run on different CPUs, and replicas may not drift.
#pragma once

#include <bit>
#include <cstdint>

namespace securefabric::collective {

// Storage of IEEE 754 binary16 and of bfloat16 (the upper half of a binary32).
struct Float16 {
  uint16_t bits = 0;  // sign, 5 exponent bits, 10 fraction bits
};
struct Bfloat16 {
  uint16_t bits = 0;  // sign, 8 exponent bits, 7 fraction bits
};

// kInfinity: the bits of +infinity; every larger magnitude is a NaN.
// kNan: the one NaN that the kernels produce. Hardware would pass on the payload of whichever
// operand the instruction names first, and the sign of a fresh NaN differs between x86 and Arm.
template <typename T>
struct FloatTraits;
template <>
struct FloatTraits<Float16> {
  using Unsigned = uint16_t;
  using Signed = int16_t;
  static constexpr Unsigned kInfinity = 0x7C00;
  static constexpr Unsigned kNan = 0x7E00;
};
template <>
struct FloatTraits<Bfloat16> {
  using Unsigned = uint16_t;
  using Signed = int16_t;
  static constexpr Unsigned kInfinity = 0x7F80;
  static constexpr Unsigned kNan = 0x7FC0;
};
template <>
struct FloatTraits<float> {
  using Unsigned = uint32_t;
  using Signed = int32_t;
  static constexpr Unsigned kInfinity = 0x7F80'0000;
  static constexpr Unsigned kNan = 0x7FC0'0000;
};
template <>
struct FloatTraits<double> {
  using Unsigned = uint64_t;
  using Signed = int64_t;
  static constexpr Unsigned kInfinity = 0x7FF0'0000'0000'0000;
  static constexpr Unsigned kNan = 0x7FF8'0000'0000'0000;
};

inline float canonical(float value) {
  return value == value ? value : std::bit_cast<float>(FloatTraits<float>::kNan);
}
inline double canonical(double value) {
  return value == value ? value : std::bit_cast<double>(FloatTraits<double>::kNan);
}

// `condition ? yes : no` as a mask. Of a conditional expression the compiler may make a branch, to
// skip a floating-point operation that could raise a flag, and with a branch no vector code.
inline uint32_t choose(bool condition, uint32_t yes, uint32_t no) {
  const uint32_t mask = 0U - static_cast<uint32_t>(condition);
  return (yes & mask) | (no & ~mask);
}

inline float widen(Bfloat16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}

inline float widen(Float16 value) {
  const uint32_t magnitude = value.bits & 0x7FFFU;
  // A normal number moves its fraction up and rebiases the exponent from 15 to 127; infinity and
  // NaN rebias a second time, to the top. A subnormal is its fraction times 2^-24, exactly.
  const uint32_t rebias = (127U - 15U) << 23;
  const uint32_t top = magnitude >= 0x7C00U ? rebias : 0U;
  const uint32_t normal = (magnitude << 13) + rebias + top;
  const uint32_t subnormal =
      std::bit_cast<uint32_t>(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24F);
  const uint32_t sign = (value.bits & 0x8000U) << 16;
  return std::bit_cast<float>(choose(magnitude < 0x0400U, subnormal, normal) | sign);
}

// Rounds to nearest, ties to even; what is too large becomes infinity, a NaN becomes kNan.
template <typename Half>
Half narrow(float value);

template <>
inline Bfloat16 narrow<Bfloat16>(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16;
  const bool is_nan = (bits & 0x7FFF'FFFFU) > FloatTraits<float>::kInfinity;
  return {static_cast<uint16_t>(is_nan ? FloatTraits<Bfloat16>::kNan : rounded)};
}

template <>
inline Float16 narrow<Float16>(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t magnitude = bits & 0x7FFF'FFFFU;
  const uint32_t sign = (bits >> 16) & 0x8000U;
  // Adding 0.5 makes the float adder itself round at 2^-24, the last place of a subnormal.
  const uint32_t subnormal =
      std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5F) - 0x3F00'0000U;
  const uint32_t normal =
      (magnitude - ((127U - 15U) << 23) + 0x0FFFU + ((magnitude >> 13) & 1U)) >> 13;
  uint32_t half = choose(magnitude < 0x3880'0000U, subnormal, normal) | sign;  // below 2^-14
  half = choose(magnitude >= 0x477F'F000U, FloatTraits<Float16>::kInfinity | sign, half);  // 65520
  half = choose(magnitude > FloatTraits<float>::kInfinity, FloatTraits<Float16>::kNan, half);
  return {static_cast<uint16_t>(half)};
}

// A signed integer that orders floats as numbers, with -0.0 below +0.0; its own inverse.
template <typename Signed>
inline Signed order_key(Signed bits) {
  constexpr int kWidth = 8 * sizeof(Signed);
  const auto all_ones_if_negative = static_cast<Signed>(bits >> (kWidth - 1));
  constexpr auto kMagnitude = static_cast<Signed>(~(std::uint64_t{1} << (kWidth - 1)));
  return static_cast<Signed>(bits ^ (all_ones_if_negative & kMagnitude));
}

}  // namespace securefabric::collective
