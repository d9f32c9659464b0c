// The packet ciphers' inner loops, one table of functions per kind of CPU.
//
// A packet goes through start, any number of whole groups, and finish. State between the calls is
// in a Work on the caller's stack, so nothing is allocated; callers gather a packet from pieces by
// cutting it into runs of whole groups (aead_fused.cc). No branch and no address depends on a key
// or on data: AES and the products are instructions.
//
// Plain C types only: see kernel_vectors.h for why.
#pragma once

#include <cstddef>
#include <cstdint>

namespace securefabric::crypto {

inline constexpr size_t kKernelKeyBytes = 32;  // of both ciphers

// AES-256-GCM works on eight blocks at a time: enough independent AES rounds to hide their latency,
// and one GHASH reduction for eight products.
inline constexpr size_t kGcmGroupBlocks = 8;
inline constexpr size_t kGcmGroupBytes = 16 * kGcmGroupBlocks;
inline constexpr size_t kGcmNonceBytes = 12;

// Secret: what AES-256-GCM derives from its key, once per key. Lives in secret memory.
struct GcmSchedule {
  uint8_t round_keys[15][16];  // AES-256, FIPS 197 §5.2
  // H^8 ... H^1, byte-reversed and multiplied by x, so that [8 - n] begins the last n powers.
  uint8_t powers[kGcmGroupBlocks][16];
  // Both halves of each power added up, twice: what Karatsuba's middle product takes.
  uint8_t folded[kGcmGroupBlocks][16];
};

// One packet in work.
struct GcmWork {
  uint8_t counter[16];   // byte-reversed counter block of the next block of the packet
  uint8_t hash[16];      // byte-reversed GHASH state
  uint8_t tag_mask[16];  // the encrypted first counter block
  uint64_t aad_bytes;    // so far, for the lengths block
  uint64_t data_bytes;   // so far, without the tail
  bool hash_is_behind;   // sealing: the group before `out` is not yet in `hash`
};

// AEGIS-256X2 takes two blocks at a time, and the tail shorter than that.
inline constexpr size_t kAegisGroupBytes = 32;
inline constexpr size_t kAegisNonceBytes = 32;

// One packet in work. Secret enough to be wiped: it makes the rest of the packet's key stream.
struct AegisWork {
  uint8_t state[6][32];
  uint64_t aad_bytes;   // so far
  uint64_t data_bytes;  // so far, without the tail
};

// `in` and `out` hold `groups` whole groups and are the same or do not overlap. A tail is shorter
// than a group; its buffer has the size of a group, zeros behind the tail, and is overwritten by
// the result. Tags have 16 bytes. Opening computes the tag that the packet should have.
//
// What is sealed lies in the user's memory, seldom in the cache, and the prefetchers of CPUs stop
// at each page. Sealing therefore fetches what is some way ahead of `in`, up to `fetch_end`, which
// is not below the end of the groups: what lies between will be sealed soon.
struct PacketKernels {
  const char* name;  // for people: "aes-ni"

  void (*gcm_expand)(GcmSchedule& schedule, const uint8_t* key);
  void (*gcm_start)(const GcmSchedule& schedule, GcmWork& work, const uint8_t* nonce,
                    const uint8_t* aad, size_t aad_bytes);
  // Successive calls write without gaps: the hash reads the group before `out` again.
  void (*gcm_seal)(const GcmSchedule& schedule, GcmWork& work, const uint8_t* in, uint8_t* out,
                   size_t groups, const uint8_t* fetch_end);
  void (*gcm_open)(const GcmSchedule& schedule, GcmWork& work, const uint8_t* in, uint8_t* out,
                   size_t groups);
  // `out` is where the tail will be stored by the caller: the group before it may be behind.
  void (*gcm_seal_finish)(const GcmSchedule& schedule, GcmWork& work, uint8_t* tail,
                          size_t tail_bytes, const uint8_t* out, uint8_t* tag);
  void (*gcm_open_finish)(const GcmSchedule& schedule, GcmWork& work, uint8_t* tail,
                          size_t tail_bytes, uint8_t* tag);

  void (*aegis_start)(AegisWork& work, const uint8_t* key, const uint8_t* nonce, const uint8_t* aad,
                      size_t aad_bytes);
  void (*aegis_seal)(AegisWork& work, const uint8_t* in, uint8_t* out, size_t groups,
                     const uint8_t* fetch_end);
  void (*aegis_open)(AegisWork& work, const uint8_t* in, uint8_t* out, size_t groups);
  void (*aegis_seal_finish)(AegisWork& work, uint8_t* tail, size_t tail_bytes, uint8_t* tag);
  void (*aegis_open_finish)(AegisWork& work, uint8_t* tail, size_t tail_bytes, uint8_t* tag);
};

// Null in builds for other CPUs.
const PacketKernels* aesni_kernels();   // AES, PCLMULQDQ and AVX
const PacketKernels* vaes_kernels();    // VAES, VPCLMULQDQ and AVX2
const PacketKernels* avx512_kernels();  // these and AVX-512 F, BW and VL

}  // namespace securefabric::crypto
