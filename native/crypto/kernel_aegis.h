// AEGIS-256X2 (RFC 10032) with 128-bit tags, over the shapes of kernel_vectors.h.
//
// Two AEGIS-256 states side by side, told apart by a context block, take turns of 16 bytes each.
// One step is one AES round on each of six blocks per state, all independent, so a step takes about
// the latency of one round and moves 32 bytes.
#pragma once

#include "crypto/kernel_vectors.h"
#include "crypto/kernels.h"

namespace securefabric::crypto {
namespace {

template <typename V>
struct Aegis256x2 {
  struct State {
    V s0, s1, s2, s3, s4, s5;
  };

  SF_INLINE static State load(const AegisWork& work) {
    return {V::load(work.state[0]), V::load(work.state[1]), V::load(work.state[2]),
            V::load(work.state[3]), V::load(work.state[4]), V::load(work.state[5])};
  }
  SF_INLINE static void store(const State& s, AegisWork& work) {
    s.s0.store(work.state[0]);
    s.s1.store(work.state[1]);
    s.s2.store(work.state[2]);
    s.s3.store(work.state[3]);
    s.s4.store(work.state[4]);
    s.s5.store(work.state[5]);
  }

  SF_INLINE static void update(State& s, V message) {
    const V last = s.s5;
    s.s5 = s.s4.aes_round(s.s5);
    s.s4 = s.s3.aes_round(s.s4);
    s.s3 = s.s2.aes_round(s.s3);
    s.s2 = s.s1.aes_round(s.s2);
    s.s1 = s.s0.aes_round(s.s1);
    if constexpr (V::kIsOneRegister) {
      // Latency decides: the round need not wait for the message, which opening finds out last.
      s.s0 = last.aes_round(V::zero()) ^ (s.s0 ^ message);
    } else {
      // The number of instructions decides: the round adds its key for nothing.
      s.s0 = last.aes_round(s.s0 ^ message);
    }
  }
  SF_INLINE static V key_stream(const State& s) { return s.s1 ^ s.s4 ^ s.s5 ^ (s.s2 & s.s3); }

  static void start(AegisWork& work, const uint8_t* key, const uint8_t* nonce, const uint8_t* aad,
                    size_t aad_bytes) {
    alignas(16) static constexpr uint8_t kFibonacci[2][16] = {
        {0x00, 0x01, 0x01, 0x02, 0x03, 0x05, 0x08, 0x0D, 0x15, 0x22, 0x37, 0x59, 0x90, 0xE9, 0x79,
         0x62},
        {0xDB, 0x3D, 0x18, 0x55, 0x6D, 0xC2, 0x2F, 0xF1, 0x20, 0x11, 0x31, 0x42, 0x73, 0xB5, 0x28,
         0xDD},
    };
    // Number of the state, then the number of the last one.
    alignas(32) static constexpr uint8_t kContext[32] = {0, 1, 0, 0, 0, 0, 0, 0, 0,
                                                         0, 0, 0, 0, 0, 0, 0, 1, 1};
    // Padded before there is a state: copying may be a call, around which registers are kept in
    // memory that nobody wipes.
    const size_t rest = aad_bytes % kAegisGroupBytes;
    const size_t whole = aad_bytes - rest;
    alignas(32) uint8_t padded[kAegisGroupBytes] = {};
    for (size_t i = 0; i < rest; ++i) padded[i] = aad[whole + i];

    const V c0 = V::repeat(load_block(kFibonacci[0]));
    const V c1 = V::repeat(load_block(kFibonacci[1]));
    const V context = V::load(kContext);
    // A half of the key, or that half combined with the nonce. The compiler must not know that they
    // stay the same, see Gcm::run.
    const auto word = [&](size_t half, bool has_nonce) {
      asm("" : "+r"(key), "+r"(nonce));
      const V key_half = V::repeat(load_block(key + 16 * half));
      return has_nonce ? key_half ^ V::repeat(load_block(nonce + 16 * half)) : key_half;
    };
    State s = {word(0, true), word(1, true), c1, c0, word(0, false) ^ c0, word(1, false) ^ c1};
    SF_UNROLL
    for (size_t i = 0; i < 16; ++i) {
      s.s3 = s.s3 ^ context;
      s.s5 = s.s5 ^ context;
      update(s, word(i % 2, i % 4 >= 2));
    }
    for (size_t at = 0; at < whole; at += kAegisGroupBytes) update(s, V::load(aad + at));
    if (rest > 0) update(s, V::load(padded));
    store(s, work);
    work.aad_bytes = aad_bytes;
    work.data_bytes = 0;
  }

  static void seal(AegisWork& work, const uint8_t* in, uint8_t* out, size_t groups,
                   const uint8_t* fetch_end) {
    State s = load(work);
    work.data_bytes += groups * kAegisGroupBytes;
    for (; groups > 0; --groups, in += kAegisGroupBytes, out += kAegisGroupBytes) {
      fetch_ahead(in, fetch_end);
      const V message = V::load(in);
      (message ^ key_stream(s)).store(out);
      update(s, message);
    }
    store(s, work);
  }

  static void open(AegisWork& work, const uint8_t* in, uint8_t* out, size_t groups) {
    State s = load(work);
    work.data_bytes += groups * kAegisGroupBytes;
    for (; groups > 0; --groups, in += kAegisGroupBytes, out += kAegisGroupBytes) {
      const V message = V::load(in) ^ key_stream(s);
      message.store(out);
      update(s, message);
    }
    store(s, work);
  }

  SF_INLINE static void finish(State& s, const AegisWork& work, size_t tail_bytes, uint8_t* tag) {
    const uint64_t data_bytes = work.data_bytes + tail_bytes;
    const V lengths = V::repeat(_mm_set_epi64x(static_cast<int64_t>(8 * data_bytes),
                                               static_cast<int64_t>(8 * work.aad_bytes))) ^
                      s.s3;
    for (int i = 0; i < 7; ++i) update(s, lengths);
    store_block(tag, (s.s0 ^ s.s1 ^ s.s2 ^ s.s3 ^ s.s4 ^ s.s5).xor_halves());
  }

  static void seal_finish(AegisWork& work, uint8_t* tail, size_t tail_bytes, uint8_t* tag) {
    State s = load(work);
    if (tail_bytes > 0) {
      const V message = V::load(tail);
      (message ^ key_stream(s)).store(tail);
      update(s, message);
    }
    finish(s, work, tail_bytes, tag);
  }

  static void open_finish(AegisWork& work, uint8_t* tail, size_t tail_bytes, uint8_t* tag) {
    State s = load(work);
    if (tail_bytes > 0) {
      (V::load(tail) ^ key_stream(s)).store(tail);
      // What the key stream left behind the tail is not part of the message.
      for (size_t i = tail_bytes; i < kAegisGroupBytes; ++i) tail[i] = 0;
      update(s, V::load(tail));
    }
    finish(s, work, tail_bytes, tag);
  }
};

}  // namespace
}  // namespace securefabric::crypto
