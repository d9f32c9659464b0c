// AES blocks side by side, in the shapes that x86 has for them:
//
//   Pair128   two blocks in two 128-bit registers   AES-NI, PCLMULQDQ and AVX
//   Wide256   two blocks in one 256-bit register    VAES, VPCLMULQDQ and AVX2
//   Wide512   four blocks in one 512-bit register   these and AVX-512 (for AES-GCM alone)
//
// The kernels are written once over these operations, so the algorithm that runs on wide registers
// is the one that runs on pairs, but for the order of one XOR; only the few instructions below
// differ.
//
// Included by the kernel sources alone, which are compiled for their CPU. Everything lies in an
// unnamed namespace and nothing is taken from the standard library, so that no function compiled
// for a newer CPU can be linked into code that runs on an older one.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#define SF_INLINE [[gnu::always_inline]] inline
#if defined(__clang__)
#define SF_UNROLL _Pragma("unroll")
#else
#define SF_UNROLL _Pragma("GCC unroll 16")
#endif

namespace securefabric::crypto {
namespace {

inline constexpr size_t kCacheLineBytes = 64;
// A cipher takes longer for so many bytes than memory does to answer. Measured: half of it still
// waits, twice as much brings nothing.
inline constexpr ptrdiff_t kFetchDistance = 4096;

// Asks for the line that is kFetchDistance ahead of `in`. Near `end`, which is above `in`, for the
// last one again: that costs less than a branch.
SF_INLINE void fetch_ahead(const uint8_t* in, const uint8_t* end) {
  const uint8_t* const ahead = end - in > kFetchDistance ? in + kFetchDistance : end - 1;
  _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T0);
}

SF_INLINE __m128i load_block(const void* from) {
  return _mm_loadu_si128(static_cast<const __m128i*>(from));
}
SF_INLINE void store_block(void* to, __m128i block) {
  _mm_storeu_si128(static_cast<__m128i*>(to), block);
}

struct Pair128 {
  static constexpr size_t kBlocks = 2;
  static constexpr bool kIsOneRegister = false;
  __m128i low, high;

  // What products are added up in: the two blocks' products go into one sum.
  using Sum = __m128i;
  SF_INLINE static Sum zero_sum() { return _mm_setzero_si128(); }
  SF_INLINE static __m128i fold(Sum sum) { return sum; }

  SF_INLINE static Pair128 load(const uint8_t* from) {
    return {load_block(from), load_block(from + 16)};
  }
  SF_INLINE static Pair128 repeat(__m128i block) { return {block, block}; }
  SF_INLINE static Pair128 with_low(__m128i block) { return {block, _mm_setzero_si128()}; }
  SF_INLINE void store(uint8_t* to) const {
    store_block(to, low);
    store_block(to + 16, high);
  }
  SF_INLINE void store_low(uint8_t* to) const { store_block(to, low); }
  SF_INLINE __m128i xor_halves() const { return _mm_xor_si128(low, high); }
  SF_INLINE Pair128 operator^(Pair128 other) const {
    return {_mm_xor_si128(low, other.low), _mm_xor_si128(high, other.high)};
  }
  SF_INLINE Pair128 operator&(Pair128 other) const {
    return {_mm_and_si128(low, other.low), _mm_and_si128(high, other.high)};
  }
  SF_INLINE Pair128 add32(Pair128 other) const {
    return {_mm_add_epi32(low, other.low), _mm_add_epi32(high, other.high)};
  }
  SF_INLINE Pair128 shuffle(__m128i order) const {
    return {_mm_shuffle_epi8(low, order), _mm_shuffle_epi8(high, order)};
  }
  SF_INLINE Pair128 swap_words() const {
    return {_mm_shuffle_epi32(low, 0x4E), _mm_shuffle_epi32(high, 0x4E)};
  }
  SF_INLINE Pair128 aes_round(Pair128 key) const {
    return {_mm_aesenc_si128(low, key.low), _mm_aesenc_si128(high, key.high)};
  }
  SF_INLINE Pair128 aes_last(Pair128 key) const {
    return {_mm_aesenclast_si128(low, key.low), _mm_aesenclast_si128(high, key.high)};
  }
  template <int kWords>
  SF_INLINE static void add_product(Sum& sum, Pair128 a, Pair128 b) {
    sum = _mm_xor_si128(sum, _mm_clmulepi64_si128(a.low, b.low, kWords));
    sum = _mm_xor_si128(sum, _mm_clmulepi64_si128(a.high, b.high, kWords));
  }
};

#if defined(__VAES__) && defined(__VPCLMULQDQ__) && defined(__AVX2__)
struct Wide256 {
  static constexpr size_t kBlocks = 2;
  static constexpr bool kIsOneRegister = true;
  __m256i both;

  using Sum = __m256i;
  SF_INLINE static Sum zero_sum() { return _mm256_setzero_si256(); }
  SF_INLINE static __m128i fold(Sum sum) {
    return _mm_xor_si128(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
  }

  SF_INLINE static Wide256 load(const uint8_t* from) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))};
  }
  SF_INLINE static Wide256 zero() { return {_mm256_setzero_si256()}; }
  SF_INLINE static Wide256 repeat(__m128i block) { return {_mm256_broadcastsi128_si256(block)}; }
  SF_INLINE static Wide256 with_low(__m128i block) { return {_mm256_zextsi128_si256(block)}; }
  SF_INLINE void store(uint8_t* to) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), both);
  }
  SF_INLINE void store_low(uint8_t* to) const { store_block(to, _mm256_castsi256_si128(both)); }
  SF_INLINE __m128i xor_halves() const { return fold(both); }
  SF_INLINE Wide256 operator^(Wide256 other) const { return {_mm256_xor_si256(both, other.both)}; }
  SF_INLINE Wide256 operator&(Wide256 other) const { return {_mm256_and_si256(both, other.both)}; }
  SF_INLINE Wide256 add32(Wide256 other) const { return {_mm256_add_epi32(both, other.both)}; }
  SF_INLINE Wide256 shuffle(__m128i order) const {
    return {_mm256_shuffle_epi8(both, _mm256_broadcastsi128_si256(order))};
  }
  SF_INLINE Wide256 swap_words() const { return {_mm256_shuffle_epi32(both, 0x4E)}; }
  SF_INLINE Wide256 aes_round(Wide256 key) const { return {_mm256_aesenc_epi128(both, key.both)}; }
  SF_INLINE Wide256 aes_last(Wide256 key) const {
    return {_mm256_aesenclast_epi128(both, key.both)};
  }
  template <int kWords>
  SF_INLINE static void add_product(Sum& sum, Wide256 a, Wide256 b) {
    sum = _mm256_xor_si256(sum, _mm256_clmulepi64_epi128(a.both, b.both, kWords));
  }
};
#endif

#if defined(__VAES__) && defined(__VPCLMULQDQ__) && defined(__AVX512F__) && defined(__AVX512BW__)
struct Wide512 {
  static constexpr size_t kBlocks = 4;
  __m512i all;

  using Sum = __m512i;
  SF_INLINE static Sum zero_sum() { return _mm512_setzero_si512(); }
  SF_INLINE static __m128i fold(Sum sum) {
    return Wide256::fold(
        _mm256_xor_si256(_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64(sum, 1)));
  }

  SF_INLINE static Wide512 load(const uint8_t* from) { return {_mm512_loadu_si512(from)}; }
  SF_INLINE static Wide512 repeat(__m128i block) { return {_mm512_broadcast_i32x4(block)}; }
  SF_INLINE static Wide512 with_low(__m128i block) { return {_mm512_zextsi128_si512(block)}; }
  SF_INLINE void store(uint8_t* to) const { _mm512_storeu_si512(to, all); }
  SF_INLINE void store_low(uint8_t* to) const { store_block(to, _mm512_castsi512_si128(all)); }
  SF_INLINE Wide512 operator^(Wide512 other) const { return {_mm512_xor_si512(all, other.all)}; }
  SF_INLINE Wide512 add32(Wide512 other) const { return {_mm512_add_epi32(all, other.all)}; }
  SF_INLINE Wide512 shuffle(__m128i order) const {
    return {_mm512_shuffle_epi8(all, _mm512_broadcast_i32x4(order))};
  }
  SF_INLINE Wide512 swap_words() const { return {_mm512_shuffle_epi32(all, _MM_PERM_BADC)}; }
  SF_INLINE Wide512 aes_round(Wide512 key) const { return {_mm512_aesenc_epi128(all, key.all)}; }
  SF_INLINE Wide512 aes_last(Wide512 key) const { return {_mm512_aesenclast_epi128(all, key.all)}; }
  template <int kWords>
  SF_INLINE static void add_product(Sum& sum, Wide512 a, Wide512 b) {
    sum = _mm512_xor_si512(sum, _mm512_clmulepi64_epi128(a.all, b.all, kWords));
  }
};
#endif

}  // namespace
}  // namespace securefabric::crypto
