// AES-256-GCM for packets (NIST SP 800-38D with 96-bit nonces), over the shapes of
// kernel_vectors.h.
//
// Stitched: while a group's eight blocks go through the AES rounds, the products of eight blocks of
// ciphertext are added up between the rounds, so both units of the CPU are busy. Opening hashes the
// group it decrypts. Sealing has no ciphertext yet, so it hashes the group before, which it reads
// again from `out` while it is in the nearest cache.
//
// GHASH. Blocks are byte-reversed, so a block is a polynomial with its bits in reverse order; the
// product of two such blocks lacks a factor x, which the stored powers of H bring along. Products
// are three multiplications each (Karatsuba): low, high, and the middle from folded halves. Eight
// products are added up and reduced once, modulo x^128 + x^7 + x^2 + x + 1, by multiplying the low
// half away in two steps.
#pragma once

#include "crypto/kernel_vectors.h"
#include "crypto/kernels.h"

namespace securefabric::crypto {
namespace {

template <typename V>
struct Gcm {
  static constexpr size_t kVectors = kGcmGroupBlocks / V::kBlocks;
  static constexpr size_t kVectorBytes = 16 * V::kBlocks;
  static constexpr int kHashSteps = 3 * kVectors;
  static constexpr int kRounds = 14;

  // --- GHASH ---

  // A product in three parts, not yet reduced.
  struct Product {
    typename V::Sum low = V::zero_sum();     // low halves
    typename V::Sum middle = V::zero_sum();  // folded halves
    typename V::Sum high = V::zero_sum();    // high halves
  };

  SF_INLINE static __m128i byte_order() {
    return _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  }
  SF_INLINE static __m128i byte_reversed(__m128i block) {
    return _mm_shuffle_epi8(block, byte_order());
  }
  SF_INLINE static __m128i fold_halves(__m128i block) {
    return _mm_xor_si128(block, _mm_shuffle_epi32(block, 0x4E));
  }

  SF_INLINE static __m128i reduce(__m128i low, __m128i middle, __m128i high) {
    const __m128i polynomial = _mm_set_epi64x(static_cast<int64_t>(0xC200000000000000u), 1);
    middle = _mm_xor_si128(middle, _mm_xor_si128(low, high));
    const __m128i first = _mm_clmulepi64_si128(polynomial, low, 0x01);
    middle = _mm_xor_si128(middle, _mm_xor_si128(_mm_shuffle_epi32(low, 0x4E), first));
    const __m128i second = _mm_clmulepi64_si128(polynomial, middle, 0x01);
    return _mm_xor_si128(high, _mm_xor_si128(_mm_shuffle_epi32(middle, 0x4E), second));
  }
  SF_INLINE static __m128i reduce(const Product& product) {
    return reduce(V::fold(product.low), V::fold(product.middle), V::fold(product.high));
  }

  SF_INLINE static __m128i multiply(__m128i a, __m128i b) {
    return reduce(_mm_clmulepi64_si128(a, b, 0x00),
                  _mm_clmulepi64_si128(fold_halves(a), fold_halves(b), 0x00),
                  _mm_clmulepi64_si128(a, b, 0x11));
  }

  // The state after up to one group of data. What is missing of the last block counts as zeros.
  static __m128i absorb(const GcmSchedule& schedule, __m128i hash, const uint8_t* data,
                        size_t bytes) {
    if (bytes == 0) return hash;
    const size_t blocks = (bytes + 15) / 16;
    __m128i low = _mm_setzero_si128();
    __m128i middle = low;
    __m128i high = low;
    for (size_t i = 0; i < blocks; ++i) {
      alignas(16) uint8_t padded[16] = {};
      const uint8_t* block = data + 16 * i;
      if (bytes - 16 * i < 16) {
        for (size_t j = 0; j < bytes - 16 * i; ++j) padded[j] = block[j];
        block = padded;
      }
      const __m128i value = _mm_xor_si128(byte_reversed(load_block(block)), hash);
      hash = _mm_setzero_si128();  // goes into the first block only
      const size_t power = kGcmGroupBlocks - blocks + i;
      const __m128i factor = load_block(schedule.powers[power]);
      const __m128i folded = load_block(schedule.folded[power]);
      low = _mm_xor_si128(low, _mm_clmulepi64_si128(value, factor, 0x00));
      high = _mm_xor_si128(high, _mm_clmulepi64_si128(value, factor, 0x11));
      middle = _mm_xor_si128(middle, _mm_clmulepi64_si128(fold_halves(value), folded, 0x00));
    }
    return reduce(low, middle, high);
  }

  // A part of a group's products: step / 3 says of which vector, step % 3 which of its three.
  SF_INLINE static void hash_step(const GcmSchedule& schedule, int step, const uint8_t* data,
                                  V& value, Product& product) {
    const size_t vector = static_cast<size_t>(step) / 3;
    const V power = V::load(schedule.powers[V::kBlocks * vector]);
    switch (step % 3) {
      case 0: {
        const V block = V::load(data + kVectorBytes * vector).shuffle(byte_order());
        value = vector == 0 ? value ^ block : block;  // `value` holds the state so far
        V::template add_product<0x00>(product.low, value, power);
        return;
      }
      case 1: V::template add_product<0x11>(product.high, value, power); return;
      default:
        V::template add_product<0x00>(product.middle, value ^ value.swap_words(),
                                      V::load(schedule.folded[V::kBlocks * vector]));
        return;
    }
  }

  // --- AES ---

  SF_INLINE static __m128i encrypt(const GcmSchedule& schedule, __m128i block) {
    block = _mm_xor_si128(block, load_block(schedule.round_keys[0]));
    for (int round = 1; round < kRounds; ++round) {
      block = _mm_aesenc_si128(block, load_block(schedule.round_keys[round]));
    }
    return _mm_aesenclast_si128(block, load_block(schedule.round_keys[kRounds]));
  }

  // Encrypts (or decrypts) one group and, between the rounds, adds a group of ciphertext at
  // `hashed` to the state. Without kHashes only the first.
  template <bool kHashes>
  SF_INLINE static void group(const GcmSchedule& schedule, V& counter, __m128i& hash,
                              const uint8_t* in, uint8_t* out, const uint8_t* hashed) {
    // What the counter of each block is ahead of the group's first.
    alignas(64) static constexpr uint32_t kAhead[kGcmGroupBlocks][4] = {
        {0, 0, 0, 0}, {1, 0, 0, 0}, {2, 0, 0, 0}, {3, 0, 0, 0},
        {4, 0, 0, 0}, {5, 0, 0, 0}, {6, 0, 0, 0}, {7, 0, 0, 0},
    };
    const auto ahead = [](size_t i) {
      return V::load(reinterpret_cast<const uint8_t*>(kAhead[V::kBlocks * i]));
    };
    V blocks[kVectors];
    const V first_key = V::repeat(load_block(schedule.round_keys[0]));
    SF_UNROLL
    for (size_t i = 0; i < kVectors; ++i) {
      blocks[i] = counter.add32(ahead(i)).shuffle(byte_order()) ^ first_key;
    }
    counter = counter.add32(V::repeat(_mm_set_epi32(0, 0, 0, kGcmGroupBlocks)));

    Product product;
    V value = V::with_low(hash);
    SF_UNROLL
    for (int round = 1; round < kRounds; ++round) {
      const V key = V::repeat(load_block(schedule.round_keys[round]));
      SF_UNROLL
      for (size_t i = 0; i < kVectors; ++i) blocks[i] = blocks[i].aes_round(key);
      if (kHashes && round <= kHashSteps) hash_step(schedule, round - 1, hashed, value, product);
    }
    const V last_key = V::repeat(load_block(schedule.round_keys[kRounds]));
    SF_UNROLL
    for (size_t i = 0; i < kVectors; ++i) {
      blocks[i].aes_last(last_key ^ V::load(in + kVectorBytes * i)).store(out + kVectorBytes * i);
    }
    if (kHashes) hash = reduce(product);
  }

  // --- Packets ---

  static void start(const GcmSchedule& schedule, GcmWork& work, const uint8_t* nonce,
                    const uint8_t* aad, size_t aad_bytes) {
    // In `work`, which is wiped: the first packet's nonce is the iv.
    store_block(work.counter, _mm_set_epi8(1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0));
    for (size_t i = 0; i < kGcmNonceBytes; ++i) work.counter[i] = nonce[i];
    const __m128i block = load_block(work.counter);
    store_block(work.tag_mask, encrypt(schedule, block));
    store_block(work.counter, _mm_add_epi32(byte_reversed(block), _mm_set_epi32(0, 0, 0, 1)));
    __m128i hash = _mm_setzero_si128();
    for (size_t at = 0; at < aad_bytes; at += kGcmGroupBytes) {
      const size_t rest = aad_bytes - at;
      hash = absorb(schedule, hash, aad + at, rest < kGcmGroupBytes ? rest : kGcmGroupBytes);
    }
    store_block(work.hash, hash);
    work.aad_bytes = aad_bytes;
    work.data_bytes = 0;
    work.hash_is_behind = false;
  }

  template <bool kSeals>
  static void run(const GcmSchedule& constant_schedule, GcmWork& work, const uint8_t* in,
                  uint8_t* out, size_t groups, const uint8_t* fetch_end) {
    const GcmSchedule* schedule = &constant_schedule;
    V counter = V::repeat(load_block(work.counter));
    __m128i hash = load_block(work.hash);
    work.data_bytes += groups * kGcmGroupBytes;
    if (kSeals && !work.hash_is_behind && groups > 0) {
      group<false>(*schedule, counter, hash, in, out, nullptr);
      in += kGcmGroupBytes;
      out += kGcmGroupBytes;
      --groups;
      work.hash_is_behind = true;
    }
    for (; groups > 0; --groups) {
      // Hides from the compiler that the schedule does not change: it would copy the keys to the
      // stack, where nobody wipes them, to save loads that cost nothing.
      asm("" : "+r"(schedule));
      if (kSeals) {
        SF_UNROLL
        for (size_t at = 0; at < kGcmGroupBytes; at += kCacheLineBytes) {
          fetch_ahead(in + at, fetch_end);
        }
      }
      group<true>(*schedule, counter, hash, in, out, kSeals ? out - kGcmGroupBytes : in);
      in += kGcmGroupBytes;
      out += kGcmGroupBytes;
    }
    counter.store_low(work.counter);
    store_block(work.hash, hash);
  }

  static void seal(const GcmSchedule& schedule, GcmWork& work, const uint8_t* in, uint8_t* out,
                   size_t groups, const uint8_t* fetch_end) {
    run<true>(schedule, work, in, out, groups, fetch_end);
  }
  static void open(const GcmSchedule& schedule, GcmWork& work, const uint8_t* in, uint8_t* out,
                   size_t groups) {
    run<false>(schedule, work, in, out, groups, nullptr);
  }

  template <bool kSeals>
  static void finish(const GcmSchedule& schedule, GcmWork& work, uint8_t* tail, size_t tail_bytes,
                     const uint8_t* out, uint8_t* tag) {
    __m128i hash = load_block(work.hash);
    const bool is_behind = kSeals && work.hash_is_behind;
    const uint8_t* const behind = out - (is_behind ? kGcmGroupBytes : 0);
    if (tail_bytes > 0) {
      if (!kSeals) hash = absorb(schedule, hash, tail, tail_bytes);
      V counter = V::repeat(load_block(work.counter));
      if (is_behind) {
        group<true>(schedule, counter, hash, tail, tail, behind);
      } else {
        group<false>(schedule, counter, hash, tail, tail, nullptr);
      }
      if (kSeals) hash = absorb(schedule, hash, tail, tail_bytes);
    } else if (is_behind) {
      hash = absorb(schedule, hash, behind, kGcmGroupBytes);
    }
    const __m128i lengths =
        _mm_set_epi64x(static_cast<int64_t>(8 * work.aad_bytes),
                       static_cast<int64_t>(8 * (work.data_bytes + tail_bytes)));
    hash = multiply(_mm_xor_si128(hash, lengths), load_block(schedule.powers[kGcmGroupBlocks - 1]));
    store_block(tag, _mm_xor_si128(byte_reversed(hash), load_block(work.tag_mask)));
  }
  static void seal_finish(const GcmSchedule& schedule, GcmWork& work, uint8_t* tail,
                          size_t tail_bytes, const uint8_t* out, uint8_t* tag) {
    finish<true>(schedule, work, tail, tail_bytes, out, tag);
  }
  static void open_finish(const GcmSchedule& schedule, GcmWork& work, uint8_t* tail,
                          size_t tail_bytes, uint8_t* tag) {
    finish<false>(schedule, work, tail, tail_bytes, nullptr, tag);
  }

  // --- Keys ---

  // FIPS 197 §5.2: the next four words from those before, and what the key generation instruction
  // made of the last one.
  SF_INLINE static __m128i next_words(__m128i words, __m128i generated) {
    words = _mm_xor_si128(words, _mm_slli_si128(words, 4));
    words = _mm_xor_si128(words, _mm_slli_si128(words, 8));
    return _mm_xor_si128(words, generated);
  }
  template <int kConstant>
  SF_INLINE static void expand_step(GcmSchedule& schedule, size_t round, __m128i& even,
                                    __m128i& odd) {
    even = next_words(even, _mm_shuffle_epi32(_mm_aeskeygenassist_si128(odd, kConstant), 0xFF));
    store_block(schedule.round_keys[round], even);
    if (round == kRounds) return;
    odd = next_words(odd, _mm_shuffle_epi32(_mm_aeskeygenassist_si128(even, 0), 0xAA));
    store_block(schedule.round_keys[round + 1], odd);
  }

  static void expand(GcmSchedule& schedule, const uint8_t* key) {
    __m128i even = load_block(key);
    __m128i odd = load_block(key + 16);
    store_block(schedule.round_keys[0], even);
    store_block(schedule.round_keys[1], odd);
    expand_step<0x01>(schedule, 2, even, odd);
    expand_step<0x02>(schedule, 4, even, odd);
    expand_step<0x04>(schedule, 6, even, odd);
    expand_step<0x08>(schedule, 8, even, odd);
    expand_step<0x10>(schedule, 10, even, odd);
    expand_step<0x20>(schedule, 12, even, odd);
    expand_step<0x40>(schedule, 14, even, odd);

    // H times x: the bit that falls out comes back as the polynomial.
    const __m128i h = byte_reversed(encrypt(schedule, _mm_setzero_si128()));
    const __m128i carries = _mm_shuffle_epi32(_mm_srai_epi32(h, 31), 0xFF);  // all ones, or zero
    const __m128i doubled =
        _mm_or_si128(_mm_slli_epi64(h, 1), _mm_slli_si128(_mm_srli_epi64(h, 63), 8));
    const __m128i polynomial = _mm_set_epi64x(static_cast<int64_t>(0xC200000000000000u), 1);
    const __m128i first = _mm_xor_si128(doubled, _mm_and_si128(carries, polynomial));
    __m128i power = first;
    for (size_t n = kGcmGroupBlocks; n-- > 0;) {
      store_block(schedule.powers[n], power);
      store_block(schedule.folded[n], fold_halves(power));
      power = multiply(power, first);
    }
  }
};

}  // namespace
}  // namespace securefabric::crypto
