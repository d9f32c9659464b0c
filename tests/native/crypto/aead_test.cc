// What every AEAD keeps, whichever provider it comes from; the vectors are in
// aead_known_answers.cc and, from a folder outside the tree, in tests/test_vectors.py.
#include "crypto/aead.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "crypto/test_bytes.h"

namespace securefabric::crypto {
namespace {

using base::Bytes;
using base::ErrorCode;
using base::Random;

TEST(Suite, names__round_trip) {
  EXPECT_EQ(all_suites().size(), 3u);
  for (const Suite suite : all_suites()) {
    EXPECT_EQ(parse_suite(suite_name(suite)).value(), suite);
  }
  EXPECT_STREQ(suite_name(Suite::kAes256Gcm), "aes-256-gcm");
  EXPECT_STREQ(suite_name(Suite::kAegis256x2), "aegis-256x2");
  EXPECT_STREQ(suite_name(Suite::kChaCha20Poly1305), "chacha20-poly1305");
}

TEST(Suite, parse__refuses_everything_else) {
  for (const char* const name : {"", "AES-256-GCM", "aes-256-gcm ", "none", "aes-128-gcm"}) {
    const auto suite = parse_suite(name);
    ASSERT_FALSE(suite.ok()) << name;
    EXPECT_EQ(suite.error().code, ErrorCode::kConfig);
  }
}

TEST(CheckCpu, aes__is_refused_without_its_instructions) {
  const CpuFeatures none{};
  const CpuFeatures aes_only{.aes = true};
  const CpuFeatures both{.aes = true, .carryless_multiply = true};
  EXPECT_TRUE(check_cpu(Suite::kAes256Gcm, both).ok());
  EXPECT_TRUE(check_cpu(Suite::kAegis256x2, aes_only).ok());
  EXPECT_TRUE(check_cpu(Suite::kChaCha20Poly1305, none).ok());
  EXPECT_FALSE(check_cpu(Suite::kAegis256x2, none).ok());
  const auto refused = check_cpu(Suite::kAes256Gcm, aes_only);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kConfig);
  EXPECT_EQ(refused.error().message,
            "cipher suite aes-256-gcm is refused on this CPU: it has no carry-less multiply "
            "instructions, and without them the cipher's timing leaks its key; make a job key for "
            "chacha20-poly1305");
}

TEST(SuiteFacts, limits__are_those_of_the_standards) {
  EXPECT_EQ(suite_facts(Suite::kAes256Gcm).generation_bits_max, 22u);  // 2^23 packets of 64 KiB
  EXPECT_EQ(suite_facts(Suite::kAes256Gcm).forgery_bits_max, 52u);
  EXPECT_EQ(suite_facts(Suite::kChaCha20Poly1305).forgery_bits_max, 36u);
  EXPECT_EQ(suite_facts(Suite::kAegis256x2).nonce_bytes, 32u);
}

TEST(FindProvider, provider__is_the_first_candidate_of_a_sound_machine) {
  EXPECT_TRUE(provider_failures().empty());
  for (const Suite suite : all_suites()) {
    const auto candidates = candidate_providers(suite);
    const auto found = find_provider(suite);
    ASSERT_EQ(found.ok(), !candidates.empty()) << suite_name(suite);
    if (!found.ok()) {
      EXPECT_EQ(found.error().code, ErrorCode::kConfig);
      continue;
    }
    EXPECT_EQ(found.value(), candidates.front());
  }
}

// Seals rightly until it counts: what a kernel with a bug, or a CPU with one, would do.
class BrokenProvider final : public AeadProvider {
 public:
  using AeadProvider::AeadProvider;
  std::unique_ptr<AeadKey> make_key(Bytes) const override { return std::make_unique<Key>(); }

 private:
  struct Key final : AeadKey {
    void seal(Bytes, Bytes, std::span<const Bytes>, base::MutableBytes, size_t) override {}
    bool open(Bytes, Bytes, Bytes, base::MutableBytes) override { return true; }
  };
};

TEST(ChooseProvider, candidate__that_fails_is_passed_over_and_named) {
  const BrokenProvider broken(Suite::kChaCha20Poly1305, "broken");
  const AeadProvider* const sound = find_provider(Suite::kChaCha20Poly1305).value();
  const AeadProvider* const candidates[] = {&broken, sound};
  const ProviderChoice choice = choose_provider(candidates);
  EXPECT_EQ(choice.provider, sound);
  ASSERT_EQ(choice.failures.size(), 1u);
  EXPECT_EQ(choice.failures[0],
            "the broken provider of chacha20-poly1305 failed its self-test and is not used: seal "
            "gave a wrong answer; it or this CPU is broken");

  const ProviderChoice none = choose_provider(std::span(candidates).first(1));
  EXPECT_EQ(none.provider, nullptr);
  EXPECT_EQ(none.failures.size(), 1u);
  EXPECT_EQ(choose_provider({}).provider, nullptr);
}

// Every provider of this CPU, whether it is the preferred one or not.
std::vector<const AeadProvider*> all_providers() {
  std::vector<const AeadProvider*> providers;
  for (const Suite suite : all_suites()) {
    const auto candidates = candidate_providers(suite);
    providers.insert(providers.end(), candidates.begin(), candidates.end());
  }
  return providers;
}

class AeadTest : public testing::TestWithParam<const AeadProvider*> {
 protected:
  void SetUp() override {
    provider_ = GetParam();
    key_ = provider_->make_key(random_bytes(random_, provider_->key_bytes()));
    nonce_ = random_bytes(random_, provider_->nonce_bytes());
  }

  ByteVector seal(Bytes aad, std::span<const Bytes> parts) {
    size_t size = kAuthTagBytes;
    for (const Bytes part : parts) size += part.size();
    ByteVector sealed(size);
    key_->seal(nonce_, aad, parts, sealed);
    return sealed;
  }
  ByteVector seal(Bytes aad, Bytes data) { return seal(aad, std::span(&data, 1)); }

  Random random_{3};
  const AeadProvider* provider_ = nullptr;
  std::unique_ptr<AeadKey> key_;
  ByteVector nonce_;
};

TEST_P(AeadTest, provider__knows_its_answers) {
  const ProviderChoice choice = choose_provider(std::span(&provider_, 1));
  EXPECT_EQ(choice.provider, provider_);
  EXPECT_LE(provider_->nonce_bytes(), kNonceBytesMax);
  EXPECT_GE(provider_->generation_bits_max(), 22u);
}

TEST_P(AeadTest, open__returns_what_was_sealed) {
  for (const size_t size : {0u, 1u, 15u, 16u, 17u, 63u, 64u, 1'424u, 8'928u, 65'000u}) {
    for (const size_t aad_size : {0u, 1u, 16u, 100u}) {
      const ByteVector data = random_bytes(random_, size);
      const ByteVector aad = random_bytes(random_, aad_size);
      const ByteVector sealed = seal(aad, data);
      ByteVector opened(size, 0xEE);
      ASSERT_TRUE(key_->open(nonce_, aad, sealed, opened)) << size;
      ASSERT_EQ(opened, data);
      nonce_[0] = static_cast<uint8_t>(nonce_[0] + 1);
    }
  }
}

TEST_P(AeadTest, seal__gathers_parts_cut_anywhere) {
  for (int round = 0; round < 200; ++round) {
    const ByteVector data = random_bytes(random_, random_.below(700));
    const ByteVector aad = random_bytes(random_, 16);
    std::vector<Bytes> parts;
    Bytes rest = data;
    while (!rest.empty()) {
      const size_t cut = random_.below(std::min<size_t>(rest.size(), 70) + 1);
      parts.push_back(rest.first(cut));  // empty parts included
      rest = rest.subspan(cut);
    }
    ASSERT_EQ(seal(aad, parts), seal(aad, data)) << parts.size();
  }
}

TEST_P(AeadTest, seal__refuses_an_output_of_another_size) {
  const ByteVector data(10);
  const Bytes part = data;
  ByteVector too_small(25);
  ByteVector too_large(27);
  EXPECT_DEATH(key_->seal(nonce_, {}, std::span(&part, 1), too_small), "broken invariant");
  EXPECT_DEATH(key_->seal(nonce_, {}, std::span(&part, 1), too_large), "broken invariant");
}

TEST_P(AeadTest, open__refuses_every_flipped_bit_and_wipes) {
  const ByteVector data = random_bytes(random_, 40);
  const ByteVector aad = random_bytes(random_, 16);
  const ByteVector sealed = seal(aad, data);
  const ByteVector wiped(data.size(), 0);
  for (size_t bit = 0; bit < 8 * sealed.size(); ++bit) {
    ByteVector forged = sealed;
    forged[bit / 8] = static_cast<uint8_t>(forged[bit / 8] ^ 1 << bit % 8);
    ByteVector out(data.size(), 0xEE);
    ASSERT_FALSE(key_->open(nonce_, aad, forged, out)) << bit;
    ASSERT_EQ(out, wiped);
  }
  for (size_t bit = 0; bit < 8 * aad.size(); ++bit) {
    ByteVector forged = aad;
    forged[bit / 8] = static_cast<uint8_t>(forged[bit / 8] ^ 1 << bit % 8);
    ByteVector out(data.size(), 0xEE);
    ASSERT_FALSE(key_->open(nonce_, forged, sealed, out)) << bit;
    ASSERT_EQ(out, wiped);
  }
  ByteVector out(data.size());
  EXPECT_TRUE(key_->open(nonce_, aad, sealed, out));
}

TEST_P(AeadTest, open__refuses_every_truncation_and_extension) {
  const ByteVector sealed = seal({}, random_bytes(random_, 40));
  for (size_t size = kAuthTagBytes; size < sealed.size(); ++size) {
    ByteVector out(size - kAuthTagBytes);
    ASSERT_FALSE(key_->open(nonce_, {}, Bytes(sealed).first(size), out)) << size;
  }
  ByteVector longer = sealed;
  longer.push_back(0);
  ByteVector out(longer.size() - kAuthTagBytes);
  EXPECT_FALSE(key_->open(nonce_, {}, longer, out));
}

TEST_P(AeadTest, open__refuses_another_nonce_and_another_key) {
  const ByteVector data = random_bytes(random_, 40);
  const ByteVector sealed = seal({}, data);
  ByteVector out(data.size());
  const auto other = provider_->make_key(random_bytes(random_, provider_->key_bytes()));
  EXPECT_FALSE(other->open(nonce_, {}, sealed, out));
  nonce_.back() ^= 1;
  EXPECT_FALSE(key_->open(nonce_, {}, sealed, out));
}

INSTANTIATE_TEST_SUITE_P(Providers, AeadTest, testing::ValuesIn(all_providers()),
                         [](const auto& tested) {
                           std::string name = suite_name(tested.param->suite());
                           name += std::string("_by_") + tested.param->name();
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace securefabric::crypto
