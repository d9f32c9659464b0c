#include "crypto/aead.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include <array>
#include <string>
#include <utility>

#include "base/check.h"
#include "crypto/aead_fused.h"
#include "crypto/aead_known_answers.h"
#include "crypto/aead_openssl.h"

namespace securefabric::crypto {
namespace {

using base::Error;
using base::ErrorCode;
using base::Result;
using base::Status;

constexpr std::array kSuites = {Suite::kAes256Gcm, Suite::kAegis256x2, Suite::kChaCha20Poly1305};

std::vector<const AeadProvider*> make_candidates(Suite suite) {
  const CpuFeatures cpu = CpuFeatures::detect();
  if (!check_cpu(suite, cpu)) return {};
  std::vector<const AeadProvider*> candidates = fused_providers(suite, cpu);
  if (const AeadProvider* openssl = openssl_provider(suite)) candidates.push_back(openssl);
  return candidates;
}

// Made by the first question about a suite, and kept.
struct Chosen {
  std::vector<const AeadProvider*> candidates;  // as candidate_providers says
  ProviderChoice choice;                        // among them
};

const Chosen& chosen(Suite suite) {
  const auto make = [](Suite which) {
    std::vector<const AeadProvider*> candidates = make_candidates(which);
    ProviderChoice choice = choose_provider(candidates);
    return Chosen{std::move(candidates), std::move(choice)};
  };
  static const Chosen gcm = make(Suite::kAes256Gcm);
  static const Chosen aegis = make(Suite::kAegis256x2);
  static const Chosen chacha = make(Suite::kChaCha20Poly1305);
  switch (suite) {
    case Suite::kAes256Gcm: return gcm;
    case Suite::kAegis256x2: return aegis;
    case Suite::kChaCha20Poly1305: return chacha;
  }
  SF_CHECK_MSG(false, std::to_string(static_cast<int>(suite)));
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

const SuiteFacts& suite_facts(Suite suite) {
  // RFC 9001 §6.6 and appendix B.1: 2^23 packets of up to 64 KiB per key keep an attacker's
  // advantage below 2^-57; half of that leaves room for what the headers add.
  static constexpr SuiteFacts kGcm = {32, 12, 22, 52};
  // RFC 10032: neither the packets of a key nor the attempts to forge one have a limit that a
  // network could reach. The bounds are only there so that the generations never stop.
  static constexpr SuiteFacts kAegis = {32, 32, 32, 62};
  // RFC 9001 §6.6: the confidentiality limit is above 2^62 packets and can be disregarded.
  static constexpr SuiteFacts kChaCha = {32, 12, 32, 36};
  switch (suite) {
    case Suite::kAes256Gcm: return kGcm;
    case Suite::kAegis256x2: return kAegis;
    case Suite::kChaCha20Poly1305: return kChaCha;
  }
  SF_CHECK_MSG(false, std::to_string(static_cast<int>(suite)));
}

std::span<const AeadProvider* const> candidate_providers(Suite suite) {
  return chosen(suite).candidates;
}

ProviderChoice choose_provider(std::span<const AeadProvider* const> candidates) {
  ProviderChoice choice;
  for (const AeadProvider* candidate : candidates) {
    const Status answers = check_known_answers(*candidate);
    if (answers.ok()) {
      choice.provider = candidate;
      return choice;
    }
    choice.failures.push_back(answers.error().message);
  }
  return choice;
}

Result<const AeadProvider*> find_provider(Suite suite) {
  const Status cpu = check_cpu(suite, CpuFeatures::detect());
  if (!cpu.ok()) return cpu.error();
  const ProviderChoice& choice = chosen(suite).choice;
  if (choice.provider != nullptr) return choice.provider;
  if (!choice.failures.empty()) return Error{ErrorCode::kConfig, choice.failures.back()};
  return Error{ErrorCode::kConfig, std::string("this build has no provider for cipher suite ") +
                                       suite_name(suite) +
                                       "; make a job key for aes-256-gcm or chacha20-poly1305"};
}

std::vector<std::string> provider_failures() {
  std::vector<std::string> failures;
  for (const Suite suite : kSuites) {
    const ProviderChoice& choice = chosen(suite).choice;
    failures.insert(failures.end(), choice.failures.begin(), choice.failures.end());
  }
  return failures;
}

CpuFeatures CpuFeatures::detect() {
  CpuFeatures cpu;
#if defined(__x86_64__)
  cpu.aes = __builtin_cpu_supports("aes") != 0;
  cpu.carryless_multiply = __builtin_cpu_supports("pclmul") != 0;
  // Both also say that the system saves the registers.
  cpu.avx = __builtin_cpu_supports("avx") != 0;
  const bool has_avx2 = __builtin_cpu_supports("avx2") != 0;
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  const bool has_leaf = __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0;
  cpu.wide_aes = has_avx2 && has_leaf && (ecx & bit_VAES) != 0 && (ecx & bit_VPCLMULQDQ) != 0;
  cpu.avx512 = cpu.wide_aes && __builtin_cpu_supports("avx512f") != 0 &&
               __builtin_cpu_supports("avx512bw") != 0 && __builtin_cpu_supports("avx512vl") != 0;
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
