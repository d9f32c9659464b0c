#include "crypto/aead.h"

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include <array>
#include <string>

#include "crypto/aead_known_answers.h"
#include "crypto/aead_openssl.h"

namespace securefabric::crypto {
namespace {

using base::Error;
using base::ErrorCode;
using base::Result;
using base::Status;

constexpr std::array kSuites = {Suite::kAes256Gcm, Suite::kAegis256x2, Suite::kChaCha20Poly1305};

Result<const AeadProvider*> checked(Suite suite) {
  const Status cpu = check_cpu(suite, CpuFeatures::detect());
  if (!cpu.ok()) return cpu.error();
  const AeadProvider* const provider = openssl_provider(suite);
  if (provider == nullptr) {
    return Error{ErrorCode::kConfig, std::string("this build has no provider for cipher suite ") +
                                         suite_name(suite) +
                                         "; make a job key for aes-256-gcm or chacha20-poly1305"};
  }
  const Status answers = check_known_answers(*provider);
  if (!answers.ok()) return answers.error();
  return provider;
}

}  // namespace

const char* suite_name(Suite suite) {
  switch (suite) {
    case Suite::kAes256Gcm: return "aes-256-gcm";
    case Suite::kAegis256x2: return "aegis-256x2";
    case Suite::kChaCha20Poly1305: return "chacha20-poly1305";
  }
  return "unknown";
}

std::span<const Suite> all_suites() {
  return kSuites;
}

Result<Suite> parse_suite(std::string_view name) {
  for (const Suite suite : kSuites) {
    if (name == suite_name(suite)) return suite;
  }
  std::string message = "unknown cipher suite; the suites are";
  for (const Suite suite : kSuites) message += std::string(" ") + suite_name(suite);
  return Error{ErrorCode::kConfig, message};
}

Result<const AeadProvider*> find_provider(Suite suite) {
  switch (suite) {
    case Suite::kAes256Gcm: {
      static const Result<const AeadProvider*> found = checked(Suite::kAes256Gcm);
      return found;
    }
    case Suite::kAegis256x2: {
      static const Result<const AeadProvider*> found = checked(Suite::kAegis256x2);
      return found;
    }
    case Suite::kChaCha20Poly1305: {
      static const Result<const AeadProvider*> found = checked(Suite::kChaCha20Poly1305);
      return found;
    }
  }
  return Error{ErrorCode::kConfig, "unknown cipher suite"};
}

CpuFeatures CpuFeatures::detect() {
  CpuFeatures cpu;
#if defined(__x86_64__)
  cpu.aes = __builtin_cpu_supports("aes") != 0;
  cpu.carryless_multiply = __builtin_cpu_supports("pclmul") != 0;
#elif defined(__aarch64__) && defined(__linux__)
  const unsigned long capabilities = getauxval(AT_HWCAP);
  cpu.aes = (capabilities & HWCAP_AES) != 0;
  cpu.carryless_multiply = (capabilities & HWCAP_PMULL) != 0;
#endif
  return cpu;
}

Status check_cpu(Suite suite, CpuFeatures cpu) {
  const bool needs_aes = suite != Suite::kChaCha20Poly1305;
  const bool needs_multiply = suite == Suite::kAes256Gcm;
  std::string missing;
  if (needs_aes && !cpu.aes) missing += " AES";
  if (needs_multiply && !cpu.carryless_multiply) missing += " carry-less multiply";
  if (missing.empty()) return base::ok_status();
  return Error{ErrorCode::kConfig,
               std::string("cipher suite ") + suite_name(suite) +
                   " is refused on this CPU: it has no" + missing +
                   " instructions, and without them the cipher's timing leaks its key; make a job "
                   "key for chacha20-poly1305"};
}

}  // namespace securefabric::crypto
