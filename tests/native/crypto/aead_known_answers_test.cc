#include "crypto/aead_known_answers.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>

#include "crypto/aead_openssl.h"
#include "crypto/test_bytes.h"

namespace securefabric::crypto {
namespace {

using base::Bytes;
using base::MutableBytes;

// How a provider may be broken.
enum class Fault {
  kNone,
  kWrongCiphertext,
  kAcceptsForgeries,
  kRefusesAll,
  kLeaks,
  kWrongWhenLong
};

class FaultyKey final : public AeadKey {
 public:
  FaultyKey(std::unique_ptr<AeadKey> sound, Fault fault)
      : sound_(std::move(sound)), fault_(fault) {}

  void seal(Bytes nonce, Bytes aad, std::span<const Bytes> parts, MutableBytes out,
            size_t following) override {
    sound_->seal(nonce, aad, parts, out, following);
    if (fault_ == Fault::kWrongCiphertext) out[0] ^= 1;
    if (fault_ == Fault::kWrongWhenLong && out.size() > 1000) out.back() ^= 1;
  }
  bool open(Bytes nonce, Bytes aad, Bytes sealed, MutableBytes out) override {
    const bool verified = sound_->open(nonce, aad, sealed, out);
    if (fault_ == Fault::kLeaks && !verified) std::fill(out.begin(), out.end(), 0xAB);
    if (fault_ == Fault::kAcceptsForgeries) return true;
    return verified && fault_ != Fault::kRefusesAll;
  }

 private:
  std::unique_ptr<AeadKey> sound_;  // does the work
  Fault fault_;                     // what is spoiled
};

class FaultyProvider final : public AeadProvider {
 public:
  explicit FaultyProvider(Fault fault, Suite suite = Suite::kAes256Gcm)
      : AeadProvider(suite, "faulty"), fault_(fault) {}
  std::unique_ptr<AeadKey> make_key(Bytes key) const override {
    return std::make_unique<FaultyKey>(openssl_provider(Suite::kAes256Gcm)->make_key(key), fault_);
  }

 private:
  Fault fault_;  // of every key
};

TEST(CheckKnownAnswers, sound__providers_pass) {
  EXPECT_TRUE(check_known_answers(*openssl_provider(Suite::kAes256Gcm)).ok());
  EXPECT_TRUE(check_known_answers(*openssl_provider(Suite::kChaCha20Poly1305)).ok());
  EXPECT_TRUE(check_known_answers(FaultyProvider(Fault::kNone)).ok());
}

TEST(CheckKnownAnswers, faulty__providers_are_named_with_their_fault) {
  const std::pair<Fault, const char*> cases[] = {
      {Fault::kWrongCiphertext, "seal gave a wrong answer"},
      {Fault::kAcceptsForgeries, "open accepted a forged tag"},
      {Fault::kRefusesAll, "open refused a genuine packet"},
      {Fault::kLeaks, "open released the plaintext of a forgery"},
      {Fault::kWrongWhenLong, "seal gave a wrong answer to a long packet"},
  };
  for (const auto& [fault, text] : cases) {
    const base::Status status = check_known_answers(FaultyProvider(fault));
    ASSERT_FALSE(status.ok()) << text;
    EXPECT_EQ(status.error().code, base::ErrorCode::kConfig);
    EXPECT_EQ(status.error().message,
              std::string("the faulty provider of aes-256-gcm failed its self-test and is not "
                          "used: ") +
                  text + "; it or this CPU is broken");
  }
}

TEST(CheckKnownAnswers, suite__of_another_cipher_fails) {
  const FaultyProvider impostor(Fault::kNone, Suite::kChaCha20Poly1305);
  EXPECT_FALSE(check_known_answers(impostor).ok());
}

}  // namespace
}  // namespace securefabric::crypto
