// Authenticated encryption: one interface, one provider per cipher suite.
//
//   find_provider(suite) -> AeadProvider (immutable, shared, lives for ever)
//     -> make_key(bytes) -> AeadKey (one owner, one thread at a time)
//       -> seal / open, once per packet
//
// A provider may come from OpenSSL or from a fused kernel: callers see only these two classes. The
// job fixes the suite; nothing here negotiates. Nonces are the caller's duty, and the only caller
// outside the tests is packet_key.h, which counts them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "base/bytes.h"
#include "base/result.h"

namespace securefabric::crypto {

// The values are part of every derived key; never renumber.
enum class Suite : uint8_t { kAes256Gcm = 1, kAegis256x2 = 2, kChaCha20Poly1305 = 3 };

// "aes-256-gcm", "aegis-256x2", "chacha20-poly1305".
const char* suite_name(Suite suite);
std::span<const Suite> all_suites();
base::Result<Suite> parse_suite(std::string_view name);

inline constexpr size_t kAuthTagBytes = 16;
// Of any suite, for buffers on the stack.
inline constexpr size_t kNonceBytesMax = 32;

// One key, ready to use. Not thread-safe: one owner at a time.
class AeadKey {
 public:
  virtual ~AeadKey() = default;

  // Seals the concatenation of `parts` into `out`: ciphertext, then the tag. Parts are gathered
  // straight into the ciphertext, so the seal is the copy. out.size() == sum of parts + 16; no part
  // overlaps it.
  virtual void seal(base::Bytes nonce, base::Bytes aad, std::span<const base::Bytes> parts,
                    base::MutableBytes out) = 0;

  // Opens what seal made. out.size() == sealed.size() - 16. False: the tag did not verify, and
  // `out` was wiped.
  [[nodiscard]] virtual bool open(base::Bytes nonce, base::Bytes aad, base::Bytes sealed,
                                  base::MutableBytes out) = 0;
};

class AeadProvider {
 public:
  virtual ~AeadProvider() = default;

  virtual Suite suite() const = 0;
  // The implementation, for people: "openssl".
  virtual const char* name() const = 0;
  virtual size_t key_bytes() const = 0;
  // At least 12: path id and packet number take the last 12 bytes.
  virtual size_t nonce_bytes() const = 0;
  // log2 of the packets, of at most 64 KiB each, that one key may seal.
  virtual unsigned generation_bits_max() const = 0;
  // log2 of the failed opens after which a link secret should be replaced (a fresh epoch).
  virtual unsigned forgery_bits_max() const = 0;

  // key.size() == key_bytes().
  virtual std::unique_ptr<AeadKey> make_key(base::Bytes key) const = 0;
};

// The provider of a suite, once its known answers were checked (the first call does). kConfig when
// this CPU cannot run the suite in constant time, when this build has no provider for it, or when
// the provider gave a wrong answer. Thread-safe.
base::Result<const AeadProvider*> find_provider(Suite suite);

// Instructions that a suite may need; what the CPU has, unless a test says otherwise.
struct CpuFeatures {
  bool aes = false;                 // AES rounds
  bool carryless_multiply = false;  // 64 x 64 bit products over GF(2), for GHASH
  static CpuFeatures detect();
};

// kConfig with the reason when the suite would not run in constant time on such a CPU.
base::Status check_cpu(Suite suite, CpuFeatures cpu);

}  // namespace securefabric::crypto
