#include "collective/reduce_kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/random.h"
#include "collective/float_bits.h"

namespace securefabric::collective {
namespace {

constexpr ReduceOp kOps[] = {ReduceOp::kSum,   ReduceOp::kAvg,    ReduceOp::kProduct,
                             ReduceOp::kMin,   ReduceOp::kMax,    ReduceOp::kBitAnd,
                             ReduceOp::kBitOr, ReduceOp::kBitXor, ReduceOp::kPremulSum};
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<DataType> all_types() {
  std::vector<DataType> types;
  for (int i = static_cast<int>(DataType::kByte); i <= static_cast<int>(DataType::kComplex128);
       ++i) {
    types.push_back(static_cast<DataType>(i));
  }
  return types;
}

std::vector<Isa> supported_isas() {
  std::vector<Isa> isas;
  for (const Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
    if (is_isa_supported(isa)) isas.push_back(isa);
  }
  return isas;
}

// The result of one pair of elements; all instruction sets must agree, in vectors and alone.
template <typename T>
T reduce(DataType type, ReduceOp op, T left, T right) {
  constexpr size_t kCount = 67;
  std::vector<T> results;
  for (const Isa isa : supported_isas()) {
    const std::vector<T> lefts(kCount, left);
    const std::vector<T> rights(kCount, right);
    std::vector<T> targets(kCount);
    find_reduce_kernel(type, op, isa)(
        reinterpret_cast<uint8_t*>(targets.data()), reinterpret_cast<const uint8_t*>(lefts.data()),
        reinterpret_cast<const uint8_t*>(rights.data()), kCount * sizeof(T));
    results.insert(results.end(), targets.begin(), targets.end());
  }
  for (const T& result : results) {
    EXPECT_EQ(0, std::memcmp(&result, &results[0], sizeof(T))) << data_type_name(type);
  }
  return results[0];
}

template <typename T>
T scale(ScaleFn (*find)(DataType, Isa), DataType type, T operand, double value) {
  T results[19];
  for (const Isa isa : supported_isas()) {
    const std::vector<T> operands(std::size(results), operand);
    std::vector<T> targets(std::size(results));
    find(type, isa)(reinterpret_cast<uint8_t*>(targets.data()),
                    reinterpret_cast<const uint8_t*>(operands.data()), sizeof(results), value);
    if (isa == Isa::kBaseline) std::copy(targets.begin(), targets.end(), results);
    EXPECT_EQ(0, std::memcmp(targets.data(), results, sizeof(results)));
  }
  return results[0];
}

uint32_t bits_of(float value) {
  return std::bit_cast<uint32_t>(value);
}

TEST(ReduceKernels, find_reduce_kernel__exactly_what_the_table_allows) {
  for (const DataType type : all_types()) {
    const bool is_float = type == DataType::kFloat16 || type == DataType::kBfloat16 ||
                          type == DataType::kFloat32 || type == DataType::kFloat64;
    const bool is_complex = type == DataType::kComplex64 || type == DataType::kComplex128;
    const bool is_bits = !is_float && !is_complex;
    for (const ReduceOp op : kOps) {
      const bool is_scaled = op == ReduceOp::kAvg || op == ReduceOp::kPremulSum;
      const bool is_bitwise =
          op == ReduceOp::kBitAnd || op == ReduceOp::kBitOr || op == ReduceOp::kBitXor;
      bool is_defined = type != DataType::kByte;
      if (is_bits && op == ReduceOp::kPremulSum) is_defined = false;
      if (type == DataType::kBool && op == ReduceOp::kAvg) is_defined = false;
      if (is_float && is_bitwise) is_defined = false;
      if (is_complex && op != ReduceOp::kSum && !is_scaled) is_defined = false;
      EXPECT_EQ(is_defined, find_reduce_kernel(type, op) != nullptr)
          << data_type_name(type) << " " << reduce_op_name(op);
    }
    EXPECT_EQ(nullptr, find_reduce_kernel(type, ReduceOp::kNone));
    const bool has_average = type != DataType::kByte && type != DataType::kBool;
    EXPECT_EQ(has_average, find_finish_kernel(type) != nullptr);
    EXPECT_EQ(is_bits, find_prepare_kernel(type) == nullptr);
  }
}

TEST(ReduceKernels, integers_wrap_around) {
  EXPECT_EQ(int8_t{-128}, reduce<int8_t>(DataType::kInt8, ReduceOp::kSum, 127, 1));
  EXPECT_EQ(uint8_t{4}, reduce<uint8_t>(DataType::kUint8, ReduceOp::kSum, 250, 10));
  EXPECT_EQ(uint16_t{1}, reduce<uint16_t>(DataType::kUint16, ReduceOp::kProduct, 65535, 65535));
  EXPECT_EQ(int16_t{1}, reduce<int16_t>(DataType::kInt16, ReduceOp::kProduct, -1, -1));
  constexpr int32_t kLowest = std::numeric_limits<int32_t>::min();
  EXPECT_EQ(kLowest, reduce<int32_t>(DataType::kInt32, ReduceOp::kProduct, kLowest, -1));
  EXPECT_EQ(uint32_t{0}, reduce<uint32_t>(DataType::kUint32, ReduceOp::kSum, 0xFFFF'FFFF, 1));
  constexpr int64_t kHighest = std::numeric_limits<int64_t>::max();
  EXPECT_EQ(-2, reduce<int64_t>(DataType::kInt64, ReduceOp::kSum, kHighest, kHighest));
  EXPECT_EQ(uint64_t{1}, reduce<uint64_t>(DataType::kUint64, ReduceOp::kProduct, ~0ULL, ~0ULL));
}

TEST(ReduceKernels, averages_of_integers_truncate_toward_zero) {
  EXPECT_EQ(int8_t{-2}, scale<int8_t>(find_finish_kernel, DataType::kInt8, -5, 2.0));
  EXPECT_EQ(int8_t{0}, scale<int8_t>(find_finish_kernel, DataType::kInt8, -128, 200.0));
  EXPECT_EQ(uint8_t{84}, scale<uint8_t>(find_finish_kernel, DataType::kUint8, 254, 3.0));
  EXPECT_EQ(int16_t{-1}, scale<int16_t>(find_finish_kernel, DataType::kInt16, -32768, 32767.0));
  EXPECT_EQ(uint16_t{1}, scale<uint16_t>(find_finish_kernel, DataType::kUint16, 65535, 40000.0));
  EXPECT_EQ(-1, scale<int32_t>(find_finish_kernel, DataType::kInt32, -7, 4.0));
  EXPECT_EQ(1U, scale<uint32_t>(find_finish_kernel, DataType::kUint32, 0xFFFF'FFFF, 4e9));
  constexpr int64_t kLowest = std::numeric_limits<int64_t>::min();
  EXPECT_EQ(kLowest / 3, scale<int64_t>(find_finish_kernel, DataType::kInt64, kLowest, 3.0));
  EXPECT_EQ(~0ULL / 3, scale<uint64_t>(find_finish_kernel, DataType::kUint64, ~0ULL, 3.0));
}

TEST(ReduceKernels, min_and_max_know_the_sign) {
  EXPECT_EQ(int8_t{-1}, reduce<int8_t>(DataType::kInt8, ReduceOp::kMin, -1, 1));
  EXPECT_EQ(uint8_t{1}, reduce<uint8_t>(DataType::kUint8, ReduceOp::kMin, 255, 1));
  EXPECT_EQ(int64_t{1}, reduce<int64_t>(DataType::kInt64, ReduceOp::kMax, -1, 1));
  EXPECT_EQ(~0ULL, reduce<uint64_t>(DataType::kUint64, ReduceOp::kMax, ~0ULL, 1));
  EXPECT_EQ(-2.5F, reduce<float>(DataType::kFloat32, ReduceOp::kMin, -2.5F, -1.0F));
  EXPECT_EQ(7.0, reduce<double>(DataType::kFloat64, ReduceOp::kMax, 7.0, -9.0));
}

TEST(ReduceKernels, bitwise_operators) {
  EXPECT_EQ(0x10, reduce<int32_t>(DataType::kInt32, ReduceOp::kBitAnd, 0x30, 0x11));
  EXPECT_EQ(0x31, reduce<uint8_t>(DataType::kUint8, ReduceOp::kBitOr, 0x30, 0x11));
  EXPECT_EQ(0x21, reduce<int64_t>(DataType::kInt64, ReduceOp::kBitXor, 0x30, 0x11));
}

TEST(ReduceKernels, bool_results_are_0_or_1) {
  for (const int left : {0, 1, 2, 255}) {
    for (const int right : {0, 1, 4, 255}) {
      const bool a = left != 0;
      const bool b = right != 0;
      for (const ReduceOp op : kOps) {
        if (op == ReduceOp::kAvg || op == ReduceOp::kPremulSum) continue;
        const bool is_or = op == ReduceOp::kSum || op == ReduceOp::kMax || op == ReduceOp::kBitOr;
        const bool expected = op == ReduceOp::kBitXor ? a != b : is_or ? a || b : a && b;
        EXPECT_EQ(expected ? 1 : 0, reduce<uint8_t>(DataType::kBool, op, static_cast<uint8_t>(left),
                                                    static_cast<uint8_t>(right)))
            << reduce_op_name(op) << " " << left << " " << right;
      }
    }
  }
}

TEST(ReduceKernels, negative_zero_is_below_positive_zero) {
  for (const auto& [left, right] : {std::pair(-0.0F, 0.0F), std::pair(0.0F, -0.0F)}) {
    EXPECT_TRUE(std::signbit(reduce(DataType::kFloat32, ReduceOp::kMin, left, right)));
    EXPECT_FALSE(std::signbit(reduce(DataType::kFloat32, ReduceOp::kMax, left, right)));
    const double wide_left = static_cast<double>(left);
    const double wide_right = static_cast<double>(right);
    EXPECT_TRUE(std::signbit(reduce(DataType::kFloat64, ReduceOp::kMin, wide_left, wide_right)));
    for (const DataType type : {DataType::kFloat16, DataType::kBfloat16}) {
      const uint16_t half_left = std::signbit(left) ? 0x8000 : 0;
      const uint16_t half_right = std::signbit(right) ? 0x8000 : 0;
      EXPECT_EQ(0x8000, reduce<uint16_t>(type, ReduceOp::kMin, half_left, half_right));
      EXPECT_EQ(0x0000, reduce<uint16_t>(type, ReduceOp::kMax, half_left, half_right));
    }
  }
}

// Whichever side holds the NaN, with whatever sign and payload, the result is the same one NaN.
TEST(ReduceKernels, every_nan_becomes_the_canonical_one) {
  const float odd_nans[] = {kNan, -kNan, std::bit_cast<float>(0x7F80'0001U),
                            std::bit_cast<float>(0xFFFF'FFFFU)};
  for (const ReduceOp op : {ReduceOp::kSum, ReduceOp::kProduct, ReduceOp::kMin, ReduceOp::kMax}) {
    for (const float nan : odd_nans) {
      for (const float other : {1.0F, -0.0F, INFINITY, -INFINITY, kNan}) {
        EXPECT_EQ(0x7FC0'0000U, bits_of(reduce(DataType::kFloat32, op, nan, other)));
        EXPECT_EQ(0x7FC0'0000U, bits_of(reduce(DataType::kFloat32, op, other, nan)));
      }
    }
    for (const uint16_t nan : {0x7C01, 0xFE00, 0xFFFF}) {
      EXPECT_EQ(0x7E00, reduce<uint16_t>(DataType::kFloat16, op, nan, 0x3C00));
      EXPECT_EQ(0x7E00, reduce<uint16_t>(DataType::kFloat16, op, 0xFC00, nan));
      EXPECT_EQ(0x7FC0, reduce<uint16_t>(DataType::kBfloat16, op, nan | 0x7FC0, 0x3F80));
    }
    const double payload = std::bit_cast<double>(0xFFF8'0000'0000'1234ULL);
    EXPECT_EQ(0x7FF8'0000'0000'0000ULL,
              std::bit_cast<uint64_t>(reduce(DataType::kFloat64, op, 1.0, payload)));
  }
  // A NaN that the hardware makes has a sign on x86 and none on Arm.
  EXPECT_EQ(0x7FC0'0000U, bits_of(reduce(DataType::kFloat32, ReduceOp::kSum, INFINITY, -INFINITY)));
  EXPECT_EQ(0x7FC0'0000U, bits_of(scale(find_prepare_kernel, DataType::kFloat32, INFINITY, 0.0)));
}

TEST(ReduceKernels, half_types_round_each_step_to_nearest_even) {
  // 2048 + 1 lies between 2048 and 2050, 2050 + 1 between 2050 and 2052: ties go to even.
  EXPECT_EQ(0x6800, reduce<uint16_t>(DataType::kFloat16, ReduceOp::kSum, 0x6800, 0x3C00));
  EXPECT_EQ(0x6802, reduce<uint16_t>(DataType::kFloat16, ReduceOp::kSum, 0x6801, 0x3C00));
  // 256 + 1 in bfloat16, likewise; 258 + 1 goes up to 260.
  EXPECT_EQ(0x4380, reduce<uint16_t>(DataType::kBfloat16, ReduceOp::kSum, 0x4380, 0x3F80));
  EXPECT_EQ(0x4382, reduce<uint16_t>(DataType::kBfloat16, ReduceOp::kSum, 0x4381, 0x3F80));
  // 65504 + 65504 overflows; 2^-24 * 1 stays subnormal.
  EXPECT_EQ(0x7C00, reduce<uint16_t>(DataType::kFloat16, ReduceOp::kSum, 0x7BFF, 0x7BFF));
  EXPECT_EQ(0x0001, reduce<uint16_t>(DataType::kFloat16, ReduceOp::kProduct, 0x0001, 0x3C00));
}

TEST(ReduceKernels, complex_numbers_add_by_component) {
  const std::pair<float, float> sum =
      reduce(DataType::kComplex64, ReduceOp::kSum, std::pair(1.0F, -2.0F), std::pair(0.5F, 5.0F));
  EXPECT_EQ(std::pair(1.5F, 3.0F), sum);
}

TEST(ReduceKernels, scaling_is_done_in_the_element_type) {
  EXPECT_EQ(1.0F / 3.0F, scale(find_finish_kernel, DataType::kFloat32, 1.0F, 3.0));
  EXPECT_EQ(1.0 / 3.0, scale(find_finish_kernel, DataType::kFloat64, 1.0, 3.0));
  EXPECT_EQ(2.0F * 0.1F, scale(find_prepare_kernel, DataType::kFloat32, 2.0F, 0.1));
  EXPECT_EQ(2.0 * 0.1, scale(find_prepare_kernel, DataType::kComplex128, 2.0, 0.1));
  // 1/3 in float16 and bfloat16.
  EXPECT_EQ(0x3555, scale<uint16_t>(find_finish_kernel, DataType::kFloat16, 0x3C00, 3.0));
  EXPECT_EQ(0x3EAB, scale<uint16_t>(find_finish_kernel, DataType::kBfloat16, 0x3F80, 3.0));
  // 65504 * 0.25.
  EXPECT_EQ(0x73FF, scale<uint16_t>(find_prepare_kernel, DataType::kFloat16, 0x7BFF, 0.25));
}

// Every kernel, on random bits: all instruction sets give the same bits, at any alignment, length
// and aliasing, and write nothing beyond the end.
TEST(ReduceKernels, agree_at_every_alignment_length_and_aliasing) {
  base::Random random(42);
  constexpr size_t kRoom = 16 * 140;
  for (const DataType type : all_types()) {
    const size_t element = data_type_bytes(type);
    for (const ReduceOp op : kOps) {
      if (find_reduce_kernel(type, op) == nullptr) continue;
      for (const size_t count : {0, 1, 2, 7, 8, 17, 33, 131}) {
        std::vector<uint8_t> left(kRoom);
        std::vector<uint8_t> right(kRoom);
        random.fill(left);
        random.fill(right);
        const size_t shift = random.below(16);
        const size_t bytes = count * element;
        std::vector<uint8_t> expected(kRoom, 0x77);
        find_reduce_kernel(type, op, Isa::kBaseline)(expected.data(), left.data(), right.data(),
                                                     bytes);
        for (const Isa isa : supported_isas()) {
          const ReduceFn kernel = find_reduce_kernel(type, op, isa);
          std::vector<uint8_t> target(kRoom + 16, 0x77);
          std::vector<uint8_t> moved(16 + kRoom);
          std::copy(right.begin(), right.end(), moved.begin() + static_cast<ptrdiff_t>(shift));
          kernel(target.data() + 1, left.data(), moved.data() + shift, bytes);
          ASSERT_EQ(0, std::memcmp(target.data() + 1, expected.data(), kRoom))
              << data_type_name(type) << " " << reduce_op_name(op) << " of " << count;
          auto in_place = left;
          kernel(in_place.data(), in_place.data(), right.data(), bytes);
          ASSERT_EQ(0, bytes == 0 ? 0 : std::memcmp(in_place.data(), expected.data(), bytes));
          in_place = right;
          kernel(in_place.data(), left.data(), in_place.data(), bytes);
          ASSERT_EQ(0, bytes == 0 ? 0 : std::memcmp(in_place.data(), expected.data(), bytes));
        }
      }
    }
  }
}

TEST(ReduceKernels, reductions_commute) {
  base::Random random(7);
  std::vector<uint8_t> left(16 * 1000);
  std::vector<uint8_t> right(left.size());
  random.fill(left);
  random.fill(right);
  for (const DataType type : all_types()) {
    for (const ReduceOp op : kOps) {
      const ReduceFn kernel = find_reduce_kernel(type, op);
      if (kernel == nullptr) continue;
      std::vector<uint8_t> one(left.size());
      std::vector<uint8_t> other(left.size());
      kernel(one.data(), left.data(), right.data(), left.size());
      kernel(other.data(), right.data(), left.data(), left.size());
      EXPECT_EQ(one, other) << data_type_name(type) << " " << reduce_op_name(op);
    }
  }
}

TEST(ReduceKernels, best_isa__is_supported) {
  EXPECT_TRUE(is_isa_supported(best_isa()));
  EXPECT_TRUE(is_isa_supported(Isa::kBaseline));
}

}  // namespace
}  // namespace securefabric::collective
