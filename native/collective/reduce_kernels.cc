// From the element to the table: what one operator does to one pair of elements, the loop over
// elements, that loop compiled once per instruction set, and the choice among all of these.
//
// The loops are plain C++ that the compiler turns into vector code; each is compiled once per
// instruction set by a `target` attribute on the function it is inlined into. (Separate files with
// their own compiler flags would leak AVX code into the inline functions they share.)
#include "collective/reduce_kernels.h"

#include <bit>
#include <concepts>
#include <cstring>
#include <type_traits>

#include "collective/float_bits.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#define SF_TARGET_AVX2 __attribute__((target("avx2,f16c")))
#if defined(__clang__)
#define SF_TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,f16c")))
#else
#define SF_TARGET_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,f16c,prefer-vector-width=512")))
#endif
#endif

#define SF_INLINE __attribute__((always_inline)) inline

// The vectoriser may ignore that `target` could overlap an operand by some elements: the contract
// allows only equal or disjoint ranges, and equal ones are read before they are written.
#if defined(__clang__)
#define SF_INDEPENDENT_ITERATIONS _Pragma("clang loop vectorize(assume_safety)")
#else
#define SF_INDEPENDENT_ITERATIONS _Pragma("GCC ivdep")
#endif

namespace securefabric::collective {
namespace {

// --- One pair of elements -----------------------------------------------------------------------

// Storage of a torch.bool; any non-zero byte is true.
struct Bool {
  uint8_t byte = 0;
};

template <typename T>
concept Half = std::same_as<T, Float16> || std::same_as<T, Bfloat16>;
template <typename T>
concept Real = std::same_as<T, float> || std::same_as<T, double>;

// Wide enough and unsigned, so that no overflow is undefined (uint16 x uint16 promotes to int).
template <std::integral T>
using Wrapping = std::conditional_t<sizeof(T) < 4, uint32_t, std::make_unsigned_t<T>>;

template <typename T>
struct Sum {
  using Element = T;
  static SF_INLINE T apply(T left, T right) {
    if constexpr (std::same_as<T, Bool>) {
      return {static_cast<uint8_t>((left.byte | right.byte) != 0)};
    } else if constexpr (Half<T>) {
      return narrow<T>(widen(left) + widen(right));
    } else if constexpr (Real<T>) {
      return canonical(left + right);
    } else {
      return static_cast<T>(static_cast<Wrapping<T>>(left) + static_cast<Wrapping<T>>(right));
    }
  }
};

template <typename T>
struct Product {
  using Element = T;
  static SF_INLINE T apply(T left, T right) {
    if constexpr (std::same_as<T, Bool>) {
      return {static_cast<uint8_t>((left.byte != 0) & (right.byte != 0))};
    } else if constexpr (Half<T>) {
      return narrow<T>(widen(left) * widen(right));
    } else if constexpr (Real<T>) {
      return canonical(left * right);
    } else {
      return static_cast<T>(static_cast<Wrapping<T>>(left) * static_cast<Wrapping<T>>(right));
    }
  }
};

// Floats are compared as integers: see order_key. NaNs, whose keys lie beyond the infinities, are
// replaced at the end, whichever side they came from.
template <typename T, bool kWantsSmaller>
struct Extreme {
  using Element = T;
  static SF_INLINE T apply(T left, T right) {
    if constexpr (std::integral<T>) {
      return pick(left, right);
    } else {
      using Traits = FloatTraits<T>;
      using Signed = typename Traits::Signed;
      const auto left_bits = std::bit_cast<Signed>(left);
      const auto right_bits = std::bit_cast<Signed>(right);
      const Signed picked = order_key(pick(order_key(left_bits), order_key(right_bits)));
      const bool is_nan = has_nan(left_bits) || has_nan(right_bits);
      return std::bit_cast<T>(is_nan ? static_cast<Signed>(Traits::kNan) : picked);
    }
  }

 private:
  template <typename Value>
  static SF_INLINE Value pick(Value left, Value right) {
    return kWantsSmaller == (right < left) ? right : left;
  }
  template <typename Signed>
  static SF_INLINE bool has_nan(Signed bits) {
    constexpr auto kMagnitude = static_cast<Signed>(~(uint64_t{1} << (8 * sizeof(Signed) - 1)));
    return static_cast<Signed>(bits & kMagnitude) > static_cast<Signed>(FloatTraits<T>::kInfinity);
  }
};

template <typename T>
struct BitAnd {
  using Element = T;
  static SF_INLINE T apply(T left, T right) { return static_cast<T>(left & right); }
};
template <typename T>
struct BitOr {
  using Element = T;
  static SF_INLINE T apply(T left, T right) { return static_cast<T>(left | right); }
};
template <typename T>
struct BitXor {
  using Element = T;
  static SF_INLINE T apply(T left, T right) {
    if constexpr (std::same_as<T, Bool>) {
      return {static_cast<uint8_t>((left.byte != 0) != (right.byte != 0))};
    } else {
      return static_cast<T>(left ^ right);
    }
  }
};

// `Factor` is what a scale kernel multiplies or divides by: float for the half types; wide for the
// integers, since there may be more ranks than an int8 can count.
template <typename T>
struct FactorOf {
  using Type = float;
};
template <>
struct FactorOf<double> {
  using Type = double;
};
template <std::integral T>
struct FactorOf<T> {
  using Type = std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>;
};
template <typename T>
using Factor = typename FactorOf<T>::Type;

template <typename T>
struct Multiply {
  using Element = T;
  static SF_INLINE T apply(T operand, Factor<T> value) {
    if constexpr (Half<T>)
      return narrow<T>(widen(operand) * value);
    else
      return canonical(operand * value);
  }
};
template <typename T>
struct Divide {
  using Element = T;
  static SF_INLINE T apply(T operand, Factor<T> value) {
    if constexpr (Half<T>)
      return narrow<T>(widen(operand) / value);
    else if constexpr (std::integral<T>)
      return static_cast<T>(operand / value);  // toward zero
    else
      return canonical(operand / value);
  }
};

// --- All elements -------------------------------------------------------------------------------

template <typename T>
SF_INLINE T load(const uint8_t* from, size_t index) {
  T value;
  std::memcpy(&value, from + index * sizeof(T), sizeof(T));
  return value;
}
template <typename T>
SF_INLINE void store(uint8_t* to, size_t index, T value) {
  std::memcpy(to + index * sizeof(T), &value, sizeof(T));
}

template <typename Op>
struct ReduceLoop {
  using Operation = Op;
  using Fn = ReduceFn;
  static SF_INLINE void run(uint8_t* target, const uint8_t* left, const uint8_t* right,
                            size_t bytes) {
    using T = typename Op::Element;
    const size_t count = bytes / sizeof(T);
    SF_INDEPENDENT_ITERATIONS
    for (size_t i = 0; i < count; ++i) {
      store<T>(target, i, Op::apply(load<T>(left, i), load<T>(right, i)));
    }
  }
};

template <typename Op>
struct ScaleLoop {
  using Operation = Op;
  using Fn = ScaleFn;
  static SF_INLINE void run(uint8_t* target, const uint8_t* operand, size_t bytes, double value) {
    using T = typename Op::Element;
    const auto factor = static_cast<Factor<T>>(value);
    const size_t count = bytes / sizeof(T);
    SF_INDEPENDENT_ITERATIONS
    for (size_t i = 0; i < count; ++i) store<T>(target, i, Op::apply(load<T>(operand, i), factor));
  }
};

// --- Per instruction set ------------------------------------------------------------------------

template <typename Loop, typename... Arguments>
void run_baseline(Arguments... arguments) {
  Loop::run(arguments...);
}
#if defined(__x86_64__)
template <typename Loop, typename... Arguments>
SF_TARGET_AVX2 void run_avx2(Arguments... arguments) {
  Loop::run(arguments...);
}
template <typename Loop, typename... Arguments>
SF_TARGET_AVX512 void run_avx512(Arguments... arguments) {
  Loop::run(arguments...);
}
#endif

// float16 with F16C's conversions, several times faster than widen and narrow, and with the same
// results; what is left after the last eight elements goes the common way.
#if defined(__x86_64__)
SF_TARGET_AVX2 SF_INLINE __m256 load_eight(const uint8_t* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
SF_TARGET_AVX2 SF_INLINE void store_eight(uint8_t* to, __m256 value) {
  const __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(FloatTraits<float>::kNan));
  const __m256 is_nan = _mm256_cmp_ps(value, value, _CMP_UNORD_Q);
  const __m128i halves =
      _mm256_cvtps_ph(_mm256_blendv_ps(value, nan, is_nan), _MM_FROUND_TO_NEAREST_INT);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), halves);
}

template <typename Op>
SF_TARGET_AVX2 void run_f16c_reduce(uint8_t* target, const uint8_t* left, const uint8_t* right,
                                    size_t bytes) {
  const size_t whole = bytes / 16 * 16;
  for (size_t at = 0; at < whole; at += 16) {
    const __m256 a = load_eight(left + at);
    const __m256 b = load_eight(right + at);
    if constexpr (std::same_as<Op, Sum<Float16>>) {
      store_eight(target + at, _mm256_add_ps(a, b));
    } else {
      static_assert(std::same_as<Op, Product<Float16>>);
      store_eight(target + at, _mm256_mul_ps(a, b));
    }
  }
  ReduceLoop<Op>::run(target + whole, left + whole, right + whole, bytes - whole);
}

template <typename Op>
SF_TARGET_AVX2 void run_f16c_scale(uint8_t* target, const uint8_t* operand, size_t bytes,
                                   double value) {
  const __m256 factor = _mm256_set1_ps(static_cast<float>(value));
  const size_t whole = bytes / 16 * 16;
  for (size_t at = 0; at < whole; at += 16) {
    const __m256 a = load_eight(operand + at);
    if constexpr (std::same_as<Op, Multiply<Float16>>) {
      store_eight(target + at, _mm256_mul_ps(a, factor));
    } else {
      static_assert(std::same_as<Op, Divide<Float16>>);
      store_eight(target + at, _mm256_div_ps(a, factor));
    }
  }
  ScaleLoop<Op>::run(target + whole, operand + whole, bytes - whole, value);
}
#endif

template <typename Op>
concept HalfArithmetic = std::same_as<Op, Sum<Float16>> || std::same_as<Op, Product<Float16>> ||
                         std::same_as<Op, Multiply<Float16>> || std::same_as<Op, Divide<Float16>>;

template <typename Loop>
typename Loop::Fn select([[maybe_unused]] Isa isa) {
#if defined(__x86_64__)
  using Op = typename Loop::Operation;
  if constexpr (HalfArithmetic<Op>) {
    if (isa == Isa::kBaseline) return run_baseline<Loop>;
    if constexpr (std::same_as<typename Loop::Fn, ReduceFn>)
      return run_f16c_reduce<Op>;
    else
      return run_f16c_scale<Op>;
  }
  if (isa == Isa::kAvx512) return run_avx512<Loop>;
  if (isa == Isa::kAvx2) return run_avx2<Loop>;
#endif
  return run_baseline<Loop>;
}

// --- The table ----------------------------------------------------------------------------------

template <template <typename> typename Op, typename T>
ReduceFn reduce(Isa isa) {
  return select<ReduceLoop<Op<T>>>(isa);
}
template <typename T>
using Min = Extreme<T, true>;
template <typename T>
using Max = Extreme<T, false>;

template <std::integral T>
ReduceFn find_integer(ReduceOp op, Isa isa) {
  switch (op) {
    case ReduceOp::kSum:
    case ReduceOp::kAvg: return reduce<Sum, std::make_unsigned_t<T>>(isa);
    case ReduceOp::kProduct: return reduce<Product, std::make_unsigned_t<T>>(isa);
    case ReduceOp::kMin: return reduce<Min, T>(isa);
    case ReduceOp::kMax: return reduce<Max, T>(isa);
    case ReduceOp::kBitAnd: return reduce<BitAnd, std::make_unsigned_t<T>>(isa);
    case ReduceOp::kBitOr: return reduce<BitOr, std::make_unsigned_t<T>>(isa);
    case ReduceOp::kBitXor: return reduce<BitXor, std::make_unsigned_t<T>>(isa);
    case ReduceOp::kNone:
    case ReduceOp::kPremulSum: return nullptr;
  }
  return nullptr;
}

template <typename T>
ReduceFn find_float(ReduceOp op, Isa isa) {
  switch (op) {
    case ReduceOp::kSum:
    case ReduceOp::kAvg:
    case ReduceOp::kPremulSum: return reduce<Sum, T>(isa);
    case ReduceOp::kProduct: return reduce<Product, T>(isa);
    case ReduceOp::kMin: return reduce<Min, T>(isa);
    case ReduceOp::kMax: return reduce<Max, T>(isa);
    case ReduceOp::kNone:
    case ReduceOp::kBitAnd:
    case ReduceOp::kBitOr:
    case ReduceOp::kBitXor: return nullptr;
  }
  return nullptr;
}

template <typename Component>
ReduceFn find_complex(ReduceOp op, Isa isa) {
  const bool is_sum = op == ReduceOp::kSum || op == ReduceOp::kAvg || op == ReduceOp::kPremulSum;
  return is_sum ? reduce<Sum, Component>(isa) : nullptr;
}

ReduceFn find_bool(ReduceOp op, Isa isa) {
  switch (op) {
    case ReduceOp::kSum:
    case ReduceOp::kMax:
    case ReduceOp::kBitOr: return reduce<Sum, Bool>(isa);
    case ReduceOp::kProduct:
    case ReduceOp::kMin:
    case ReduceOp::kBitAnd: return reduce<Product, Bool>(isa);
    case ReduceOp::kBitXor: return reduce<BitXor, Bool>(isa);
    case ReduceOp::kNone:
    case ReduceOp::kAvg:
    case ReduceOp::kPremulSum: return nullptr;
  }
  return nullptr;
}

template <template <typename> typename Op>
ScaleFn find_scale(DataType type, Isa isa) {
  switch (type) {
    case DataType::kFloat16: return select<ScaleLoop<Op<Float16>>>(isa);
    case DataType::kBfloat16: return select<ScaleLoop<Op<Bfloat16>>>(isa);
    case DataType::kFloat32:
    case DataType::kComplex64: return select<ScaleLoop<Op<float>>>(isa);
    case DataType::kFloat64:
    case DataType::kComplex128: return select<ScaleLoop<Op<double>>>(isa);
    default: return nullptr;
  }
}

#if defined(__x86_64__)
// Not every compiler's __builtin_cpu_supports knows it. That the system saves the registers follows
// from the AVX2 that is asked for with it.
bool has_f16c() {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

}  // namespace

bool is_isa_supported(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kBaseline) return true;
  if (!__builtin_cpu_supports("avx2") || !has_f16c()) return false;
  return isa == Isa::kAvx2 ||
         (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"));
#else
  return isa == Isa::kBaseline;
#endif
}

Isa best_isa() {
  static const Isa best = is_isa_supported(Isa::kAvx512) ? Isa::kAvx512
                          : is_isa_supported(Isa::kAvx2) ? Isa::kAvx2
                                                         : Isa::kBaseline;
  return best;
}

ReduceFn find_reduce_kernel(DataType type, ReduceOp op, Isa isa) {
  switch (type) {
    case DataType::kByte: return nullptr;
    case DataType::kInt8: return find_integer<int8_t>(op, isa);
    case DataType::kUint8: return find_integer<uint8_t>(op, isa);
    case DataType::kInt16: return find_integer<int16_t>(op, isa);
    case DataType::kUint16: return find_integer<uint16_t>(op, isa);
    case DataType::kInt32: return find_integer<int32_t>(op, isa);
    case DataType::kUint32: return find_integer<uint32_t>(op, isa);
    case DataType::kInt64: return find_integer<int64_t>(op, isa);
    case DataType::kUint64: return find_integer<uint64_t>(op, isa);
    case DataType::kFloat16: return find_float<Float16>(op, isa);
    case DataType::kBfloat16: return find_float<Bfloat16>(op, isa);
    case DataType::kFloat32: return find_float<float>(op, isa);
    case DataType::kFloat64: return find_float<double>(op, isa);
    case DataType::kBool: return find_bool(op, isa);
    case DataType::kComplex64: return find_complex<float>(op, isa);
    case DataType::kComplex128: return find_complex<double>(op, isa);
  }
  return nullptr;
}

ScaleFn find_prepare_kernel(DataType type, Isa isa) {
  return find_scale<Multiply>(type, isa);
}

ScaleFn find_finish_kernel(DataType type, Isa isa) {
  switch (type) {
    case DataType::kInt8: return select<ScaleLoop<Divide<int8_t>>>(isa);
    case DataType::kUint8: return select<ScaleLoop<Divide<uint8_t>>>(isa);
    case DataType::kInt16: return select<ScaleLoop<Divide<int16_t>>>(isa);
    case DataType::kUint16: return select<ScaleLoop<Divide<uint16_t>>>(isa);
    case DataType::kInt32: return select<ScaleLoop<Divide<int32_t>>>(isa);
    case DataType::kUint32: return select<ScaleLoop<Divide<uint32_t>>>(isa);
    case DataType::kInt64: return select<ScaleLoop<Divide<int64_t>>>(isa);
    case DataType::kUint64: return select<ScaleLoop<Divide<uint64_t>>>(isa);
    default: return find_scale<Divide>(type, isa);
  }
}

}  // namespace securefabric::collective
