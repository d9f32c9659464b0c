// Authenticated encryption: one interface, one provider per cipher suite.
//
//   find_provider(suite) -> AeadProvider (immutable, shared, lives for ever)
//     -> make_key(bytes) -> AeadKey (one owner, one thread at a time)
//       -> seal / open, once per packet
//
// A provider is OpenSSL (aead_openssl.h) or a kernel of our own (aead_fused.h): callers see only
// these two classes. The job fixes the suite; nothing here negotiates. Nonces are the caller's
// duty, and the only caller outside the tests is packet_key.h, which counts them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"

namespace securefabric::crypto {

// The values are part of every derived key; never renumber.
enum class Suite : uint8_t { kAes256Gcm = 1, kAegis256x2 = 2, kChaCha20Poly1305 = 3 };

// "aes-256-gcm", "aegis-256x2", "chacha20-poly1305".
const char* suite_name(Suite suite);
std::span<const Suite> all_suites();
base::Result<Suite> parse_suite(std::string_view name);

// What a suite says of itself, whoever computes it.
struct SuiteFacts {
  size_t key_bytes;
  // At least 12: path id and packet number take the last 12 bytes.
  size_t nonce_bytes;
  // log2 of the packets, of at most 64 KiB each, that one key may seal.
  unsigned generation_bits_max;
  // log2 of the failed opens after which a link secret should be replaced (a fresh epoch).
  unsigned forgery_bits_max;
};
const SuiteFacts& suite_facts(Suite suite);

inline constexpr size_t kAuthTagBytes = 16;
// Of any suite, for buffers on the stack.
inline constexpr size_t kNonceBytesMax = 32;

// One key, ready to use. Not thread-safe: one owner at a time.
class AeadKey {
 public:
  virtual ~AeadKey() = default;

  // Seals the concatenation of `parts` into `out`: ciphertext, then the tag. Parts are gathered
  // straight into the ciphertext, so the seal is the copy. out.size() == sum of parts + 16; no part
  // overlaps it. `following` bytes right behind the last part are likely to be sealed next: they
  // may be fetched into the cache meanwhile, and are not read. Where there are any, the last part
  // is not empty.
  virtual void seal(base::Bytes nonce, base::Bytes aad, std::span<const base::Bytes> parts,
                    base::MutableBytes out, size_t following = 0) = 0;

  // Opens what seal made. out.size() == sealed.size() - 16. False: the tag did not verify, and
  // `out` was wiped.
  [[nodiscard]] virtual bool open(base::Bytes nonce, base::Bytes aad, base::Bytes sealed,
                                  base::MutableBytes out) = 0;
};

class AeadProvider {
 public:
  // `name` is the implementation, for people ("openssl"), and lives for ever.
  AeadProvider(Suite suite, const char* name) : suite_(suite), name_(name) {}
  virtual ~AeadProvider() = default;

  Suite suite() const { return suite_; }
  const char* name() const { return name_; }
  size_t key_bytes() const { return suite_facts(suite_).key_bytes; }
  size_t nonce_bytes() const { return suite_facts(suite_).nonce_bytes; }
  unsigned generation_bits_max() const { return suite_facts(suite_).generation_bits_max; }
  unsigned forgery_bits_max() const { return suite_facts(suite_).forgery_bits_max; }

  // key.size() == key_bytes().
  virtual std::unique_ptr<AeadKey> make_key(base::Bytes key) const = 0;

 private:
  const Suite suite_;       // fixes sizes and limits
  const char* const name_;  // see above
};

// Instructions that a suite may need; what the CPU has, unless a test says otherwise.
struct CpuFeatures {
  bool aes = false;                 // AES rounds
  bool carryless_multiply = false;  // 64 x 64 bit products over GF(2), for GHASH
  bool avx = false;                 // x86: the three-operand forms of both
  bool wide_aes = false;            // x86: VAES, VPCLMULQDQ and AVX2, two blocks an instruction
  bool avx512 = false;              // x86: these and AVX-512 F, BW and VL, four blocks
  static CpuFeatures detect();
};

// kConfig with the reason when the suite would not run in constant time on such a CPU.
base::Status check_cpu(Suite suite, CpuFeatures cpu);

// Every provider of the suite that this CPU can run in constant time, the preferred one first.
std::span<const AeadProvider* const> candidate_providers(Suite suite);

// The first candidate that knows its answers, and what the ones before it got wrong.
struct ProviderChoice {
  const AeadProvider* provider = nullptr;  // null: none knows them
  std::vector<std::string> failures;       // one sentence for each candidate that failed
};
ProviderChoice choose_provider(std::span<const AeadProvider* const> candidates);

// The provider of a suite, chosen by the first call. kConfig when this CPU cannot run the suite in
// constant time, when this build has no provider for it, or when none knows its answers.
// Thread-safe.
base::Result<const AeadProvider*> find_provider(Suite suite);

// What providers of any suite got wrong at their self-test. Empty on a sound machine; if not, it is
// for everybody to see, even though another provider took over.
std::vector<std::string> provider_failures();

}  // namespace securefabric::crypto
