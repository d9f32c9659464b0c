// Our own packet ciphers against slow and straightforward ones: GCM against OpenSSL, AEGIS-256X2
// against a reference written from RFC 10032 with table look-ups and no vectors.
//
// The kernels for VAES run on every x86 CPU with AVX2: where it lacks the wide instructions,
// wide_emulator.h stands in for those alone.
#include "crypto/aead_fused.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <string>

#include "crypto/aead_openssl.h"
#include "crypto/slow_aegis.h"
#include "crypto/test_bytes.h"
#include "crypto/wide_emulator.h"

namespace securefabric::crypto {
namespace {

using base::Bytes;
using base::Random;

// Cuts the data at random places, some of them equal, and some where groups end.
std::vector<Bytes> cut(Random& random, Bytes data) {
  std::vector<Bytes> parts;
  while (!data.empty()) {
    const uint64_t kind = random.below(4);
    size_t size = random.below(data.size() + 1);
    if (kind == 0) size = std::min<size_t>(data.size(), random.below(40));
    if (kind == 1) size = std::min<size_t>(data.size(), 32 * random.below(9));
    parts.push_back(data.first(size));
    data = data.subspan(size);
  }
  return parts;
}

// What a suite's answer should be.
ByteVector reference_seal(Suite suite, Bytes key, Bytes nonce, Bytes aad, Bytes data) {
  if (suite == Suite::kAegis256x2) return slow_aegis256x2_seal(key, nonce, aad, data);
  ByteVector sealed(data.size() + kAuthTagBytes);
  openssl_provider(suite)->make_key(key)->seal(nonce, aad, std::span(&data, 1), sealed);
  return sealed;
}

class FusedTest : public testing::TestWithParam<Suite> {
 protected:
  void SetUp() override {
    CpuFeatures cpu = CpuFeatures::detect();
#if defined(__x86_64__)
    if (!cpu.wide_aes && WideEmulator::is_possible()) {
      cpu.wide_aes = true;
      emulator_.emplace();
    }
#endif
    providers_ = fused_providers(GetParam(), cpu);
    if (providers_.empty()) GTEST_SKIP() << "no kernels for this CPU";
  }

  // Seals in parts, opens, and opens a forgery, with each provider.
  void check(Bytes key_bytes, Bytes nonce, Bytes aad, Bytes data) {
    const ByteVector expected = reference_seal(GetParam(), key_bytes, nonce, aad, data);
    for (const AeadProvider* provider : providers_) {
      SCOPED_TRACE(std::string(provider->name()) + ", " + std::to_string(data.size()) +
                   " bytes, aad of " + std::to_string(aad.size()));
      const auto key = provider->make_key(key_bytes);
      ByteVector sealed(expected.size(), 0xEE);
      key->seal(nonce, aad, cut(random_, data), sealed);
      ASSERT_EQ(sealed, expected);
      ByteVector opened(data.size(), 0xEE);
      ASSERT_TRUE(key->open(nonce, aad, sealed, opened));
      ASSERT_TRUE(std::equal(opened.begin(), opened.end(), data.begin(), data.end()));
      const size_t bit = random_.below(8 * sealed.size());
      sealed[bit / 8] = static_cast<uint8_t>(sealed[bit / 8] ^ 1 << bit % 8);
      ASSERT_FALSE(key->open(nonce, aad, sealed, opened));
      ASSERT_EQ(opened, ByteVector(data.size(), 0));
    }
  }

  void check_random(size_t data_bytes, size_t aad_bytes) {
    const ByteVector key = random_bytes(random_, suite_facts(GetParam()).key_bytes);
    const ByteVector nonce = random_bytes(random_, suite_facts(GetParam()).nonce_bytes);
    check(key, nonce, random_bytes(random_, aad_bytes), random_bytes(random_, data_bytes));
  }

  Random random_{17};
  std::vector<const AeadProvider*> providers_;  // all kinds of kernels
#if defined(__x86_64__)
  std::optional<WideEmulator> emulator_;  // where the CPU needs it
#endif
};

TEST_P(FusedTest, seal_and_open__agree_with_the_reference_at_every_size) {
  for (size_t size = 0; size <= 400; ++size) {
    check_random(size, 16);
    if (HasFatalFailure()) return;
  }
}

TEST_P(FusedTest, seal_and_open__agree_with_the_reference_for_every_header) {
  for (size_t aad = 0; aad <= 300; aad += 1 + aad / 40) {
    check_random(random_.below(300), aad);
    if (HasFatalFailure()) return;
  }
}

TEST_P(FusedTest, seal_and_open__agree_with_the_reference_on_random_packets) {
  for (int round = 0; round < 40; ++round) {
    check_random(random_.below(round == 0 ? 66'000 : 9'000), random_.below(64));
    if (HasFatalFailure()) return;
  }
}

// Bits that random values hardly ever have together: carries, reductions, counters.
TEST_P(FusedTest, seal_and_open__agree_with_the_reference_on_extreme_values) {
  const SuiteFacts facts = suite_facts(GetParam());
  for (const uint8_t key : {0x00, 0xFF, 0x80, 0x01}) {
    for (const uint8_t nonce : {0x00, 0xFF}) {
      for (const uint8_t data : {0x00, 0xFF, 0x80}) {
        for (const size_t size : {1u, 16u, 128u, 257u, 1'000u}) {
          check(ByteVector(facts.key_bytes, key), ByteVector(facts.nonce_bytes, nonce),
                ByteVector(16, data), ByteVector(size, data));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

// Whatever follows is only fetched: it need not be what is sealed next, nor be there at all.
TEST_P(FusedTest, seal__does_not_read_what_follows) {
  const ByteVector key_bytes = random_bytes(random_, 32);
  const ByteVector nonce = random_bytes(random_, suite_facts(GetParam()).nonce_bytes);
  for (const size_t size : {0u, 1u, 31u, 32u, 128u, 4'095u, 4'096u, 4'097u, 9'000u, 33'000u}) {
    const ByteVector data = random_bytes(random_, size);
    const ByteVector expected = reference_seal(GetParam(), key_bytes, nonce, {}, data);
    for (const size_t following : {0u, 1u, 4'096u, 1u << 30}) {
      for (const AeadProvider* provider : providers_) {
        const auto key = provider->make_key(key_bytes);
        ByteVector sealed(expected.size(), 0xEE);
        key->seal(nonce, {}, cut(random_, data), sealed, size == 0 ? 0 : following);
        ASSERT_EQ(sealed, expected) << provider->name() << ", " << size << ", " << following;
      }
    }
  }
}

TEST_P(FusedTest, open__works_in_place) {
  const ByteVector key_bytes = random_bytes(random_, 32);
  const ByteVector nonce = random_bytes(random_, suite_facts(GetParam()).nonce_bytes);
  const ByteVector data = random_bytes(random_, 1'000);
  for (const AeadProvider* provider : providers_) {
    const auto key = provider->make_key(key_bytes);
    ByteVector packet = reference_seal(GetParam(), key_bytes, nonce, {}, data);
    ASSERT_TRUE(key->open(nonce, {}, packet, base::MutableBytes(packet).first(data.size())));
    packet.resize(data.size());
    ASSERT_EQ(packet, data) << provider->name();
  }
}

// Nothing beside the packet is written, and unaligned buffers are as good as others.
TEST_P(FusedTest, seal_and_open__keep_to_their_buffers) {
  const ByteVector nonce = random_bytes(random_, suite_facts(GetParam()).nonce_bytes);
  for (const AeadProvider* provider : providers_) {
    const auto key = provider->make_key(random_bytes(random_, 32));
    for (size_t size = 0; size < 300; size += 7) {
      const ByteVector data = random_bytes(random_, size);
      const Bytes part = data;
      const size_t shift = 1 + size % 33;
      ByteVector arena(shift + size + kAuthTagBytes + 64, 0xEE);
      const auto sealed = base::MutableBytes(arena).subspan(shift, size + kAuthTagBytes);
      key->seal(nonce, {}, std::span(&part, 1), sealed);
      ByteVector opened(shift + size + 64, 0xDD);
      ASSERT_TRUE(key->open(nonce, {}, sealed, base::MutableBytes(opened).subspan(shift, size)));
      for (size_t i = 0; i < shift; ++i) ASSERT_EQ(arena[i] << 8 | opened[i], 0xEEDD);
      for (size_t i = 1; i <= 64; ++i) {
        ASSERT_EQ(arena[arena.size() - i] << 8 | opened[opened.size() - i], 0xEEDD);
      }
    }
  }
}

TEST_P(FusedTest, providers__need_their_instructions) {
  EXPECT_TRUE(fused_providers(GetParam(), CpuFeatures{}).empty());
  EXPECT_TRUE(fused_providers(GetParam(), {.aes = true, .carryless_multiply = true}).empty());
  EXPECT_TRUE(fused_providers(Suite::kChaCha20Poly1305, CpuFeatures::detect()).empty());
  for (const AeadProvider* provider : fused_providers(GetParam(), CpuFeatures::detect())) {
    EXPECT_TRUE(CpuFeatures::detect().wide_aes || std::string(provider->name()) != "vaes");
    EXPECT_TRUE(CpuFeatures::detect().avx512 || std::string(provider->name()) != "avx512");
  }
}

TEST_P(FusedTest, providers__know_their_answers) {
  for (const AeadProvider* provider : providers_) {
    EXPECT_EQ(choose_provider(std::span(&provider, 1)).provider, provider) << provider->name();
  }
}

#if defined(__x86_64__)
// On a CPU without wide instructions, the tests above must have met them.
TEST_P(FusedTest, emulator__stands_in_where_the_cpu_stops) {
  if (!emulator_) GTEST_SKIP() << "this CPU has VAES, or lacks AVX2";
  const uint64_t before = WideEmulator::emulated();
  check_random(1'000, 16);
  // At least one AES round for each 32 bytes.
  EXPECT_GT(WideEmulator::emulated() - before, 3u * 14 * 1'000 / 32 / 14);
}
#endif

// RFC 10032's vectors of AEGIS-256X2: the reference of this file, against the standard.
TEST(SlowAegis, seal__gives_the_answers_of_the_standard) {
  const ByteVector key =
      from_hex("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f");
  const ByteVector nonce =
      from_hex("101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f");
  EXPECT_EQ(slow_aegis256x2_seal(key, nonce, {}, {}), from_hex("62cdbab084c83dacdb945bb446f049c8"));
  ByteVector message;
  for (int i = 0; i < 30; ++i) message.insert(message.end(), {4, 5, 6, 7});
  const ByteVector sealed = slow_aegis256x2_seal(key, nonce, from_hex("0102030401020304"), message);
  EXPECT_EQ(ByteVector(sealed.end() - 16, sealed.end()),
            from_hex("635d391828520bf1512763f0c8f5cdbd"));
}

INSTANTIATE_TEST_SUITE_P(Suites, FusedTest, testing::Values(Suite::kAes256Gcm, Suite::kAegis256x2),
                         [](const auto& tested) {
                           return tested.param == Suite::kAes256Gcm ? "aes_256_gcm" : "aegis_256x2";
                         });

}  // namespace
}  // namespace securefabric::crypto
