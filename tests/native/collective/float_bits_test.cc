#include "collective/float_bits.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/random.h"

namespace securefabric::collective {
namespace {

// The value of a half's bits, computed the slow way.
double value_of(Float16 half) {
  const int exponent = half.bits >> 10 & 0x1F;
  const int fraction = half.bits & 0x3FF;
  const double sign = half.bits & 0x8000 ? -1.0 : 1.0;
  if (exponent == 31) return fraction == 0 ? sign * INFINITY : NAN;
  if (exponent == 0) return sign * std::ldexp(fraction, -24);
  return sign * std::ldexp(1024 + fraction, exponent - 25);
}
double value_of(Bfloat16 half) {
  return static_cast<double>(std::bit_cast<float>(static_cast<uint32_t>(half.bits) << 16));
}

// The half nearest to `value`, found by comparing with its two neighbours in order of magnitude.
template <typename Half>
uint16_t nearest(float value) {
  using Traits = FloatTraits<Half>;
  if (std::isnan(value)) return Traits::kNan;
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double magnitude = std::fabs(static_cast<double>(value));
  uint16_t low = 0;
  uint16_t high = Traits::kInfinity;
  while (high - low > 1) {
    const auto middle = static_cast<uint16_t>((low + high) / 2);
    (value_of(Half{middle}) <= magnitude ? low : high) = middle;
  }
  if (std::isinf(value)) return sign | Traits::kInfinity;
  // Rounding to infinity happens where the next number would be if the exponent went on.
  const double below = value_of(Half{low});
  const double above = high == Traits::kInfinity
                           ? 2 * below - value_of(Half{static_cast<uint16_t>(low - 1)})
                           : value_of(Half{high});
  const double middle = (below + above) / 2;
  const bool rounds_up = magnitude > middle || (magnitude == middle && low % 2 == 1);
  return sign | (rounds_up ? high : low);
}

template <typename Half>
void expect_all_widen() {
  for (uint32_t bits = 0; bits <= 0xFFFF; ++bits) {
    const Half half{static_cast<uint16_t>(bits)};
    const float wide = widen(half);
    if (std::isnan(value_of(half))) {
      EXPECT_TRUE(std::isnan(wide)) << bits;
      EXPECT_EQ(FloatTraits<Half>::kNan, narrow<Half>(wide).bits);
    } else {
      ASSERT_EQ(value_of(half), static_cast<double>(wide)) << bits;
      ASSERT_EQ(std::signbit(value_of(half)), std::signbit(wide)) << bits;
      ASSERT_EQ(bits, narrow<Half>(wide).bits);  // and back
    }
  }
}

template <typename Half>
void expect_nearest(float value) {
  ASSERT_EQ(nearest<Half>(value), narrow<Half>(value).bits)
      << value << " " << std::bit_cast<uint32_t>(value);
}

template <typename Half>
void expect_narrow_rounds_to_nearest() {
  base::Random random(1);
  for (int i = 0; i < 200'000; ++i) {
    expect_nearest<Half>(std::bit_cast<float>(static_cast<uint32_t>(random.next())));
  }
  // Around every tie between two neighbours.
  for (uint32_t bits = 0; bits < FloatTraits<Half>::kInfinity; bits += 7) {
    const double low = value_of(Half{static_cast<uint16_t>(bits)});
    const double high = value_of(Half{static_cast<uint16_t>(bits + 1)});
    const auto tie = static_cast<float>((low + high) / 2);
    if (std::isinf(tie)) continue;
    expect_nearest<Half>(tie);
    expect_nearest<Half>(-std::nextafter(tie, 0.0F));
    expect_nearest<Half>(std::nextafter(tie, INFINITY));
  }
}

TEST(FloatBits, widen__every_float16) {
  expect_all_widen<Float16>();
}

TEST(FloatBits, widen__every_bfloat16) {
  expect_all_widen<Bfloat16>();
}

TEST(FloatBits, narrow__float16_rounds_to_nearest_even) {
  expect_narrow_rounds_to_nearest<Float16>();
  EXPECT_EQ(0x7BFF, narrow<Float16>(65519.9F).bits);
  EXPECT_EQ(0x7C00, narrow<Float16>(65520.0F).bits);
  EXPECT_EQ(0xFC00, narrow<Float16>(-INFINITY).bits);
}

TEST(FloatBits, narrow__bfloat16_rounds_to_nearest_even) {
  expect_narrow_rounds_to_nearest<Bfloat16>();
}

TEST(FloatBits, order_key__orders_like_the_numbers) {
  const float ascending[] = {-INFINITY, -3.0F, -1e-40F, -0.0F, 0.0F, 1e-40F, 2.0F, INFINITY};
  for (size_t i = 0; i + 1 < std::size(ascending); ++i) {
    const auto low = std::bit_cast<int32_t>(ascending[i]);
    const auto high = std::bit_cast<int32_t>(ascending[i + 1]);
    EXPECT_LT(order_key(low), order_key(high)) << ascending[i];
    EXPECT_EQ(low, order_key(order_key(low)));
  }
}

}  // namespace
}  // namespace securefabric::collective
