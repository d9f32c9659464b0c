#include "crypto/aead_openssl.h"

#include <gtest/gtest.h>
#include <openssl/evp.h>

#include <string>

#include "crypto/test_bytes.h"

namespace securefabric::crypto {
namespace {

using base::Bytes;
using base::Random;

struct Packet {
  ByteVector nonce;   // used once
  ByteVector aad;     // clear
  ByteVector data;    // plaintext
  ByteVector sealed;  // by the reference
};

// The straightforward way: a fresh context for every packet, nothing kept.
ByteVector reference_seal(const EVP_CIPHER* cipher, Bytes key, const Packet& packet) {
  ByteVector sealed(packet.data.size() + kAuthTagBytes);
  EVP_CIPHER_CTX* const context = EVP_CIPHER_CTX_new();
  int moved = 0;
  EXPECT_EQ(EVP_EncryptInit_ex(context, cipher, nullptr, key.data(), packet.nonce.data()), 1);
  EXPECT_EQ(EVP_EncryptUpdate(context, nullptr, &moved, packet.aad.data(),
                              static_cast<int>(packet.aad.size())),
            1);
  EXPECT_EQ(EVP_EncryptUpdate(context, sealed.data(), &moved, packet.data.data(),
                              static_cast<int>(packet.data.size())),
            1);
  EXPECT_EQ(EVP_EncryptFinal_ex(context, sealed.data() + moved, &moved), 1);
  EXPECT_EQ(EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, kAuthTagBytes,
                                sealed.data() + packet.data.size()),
            1);
  EVP_CIPHER_CTX_free(context);
  return sealed;
}

// One long-lived key that seals, opens and meets forgeries in any order must not carry anything
// from one packet into the next.
void check_reuse(Suite suite, const EVP_CIPHER* cipher) {
  Random random(4);
  const ByteVector secret = random_bytes(random, 32);
  const auto key = openssl_provider(suite)->make_key(secret);
  for (int step = 0; step < 500; ++step) {
    Packet packet;
    packet.nonce = random_bytes(random, 12);
    packet.aad = random_bytes(random, 1 + random.below(40));
    packet.data = random_bytes(random, 1 + random.below(600));
    packet.sealed = reference_seal(cipher, secret, packet);
    const uint64_t kind = random.below(3);
    if (kind == 0) {
      const size_t cut = random.below(packet.data.size() + 1);
      const Bytes parts[] = {Bytes(packet.data).first(cut), Bytes(packet.data).subspan(cut)};
      ByteVector sealed(packet.sealed.size());
      key->seal(packet.nonce, packet.aad, parts, sealed);
      ASSERT_EQ(sealed, packet.sealed) << step;
      continue;
    }
    if (kind == 1) packet.sealed[random.below(packet.sealed.size())] ^= 0x10;
    ByteVector opened(packet.data.size());
    ASSERT_EQ(key->open(packet.nonce, packet.aad, packet.sealed, opened), kind == 2) << step;
    if (kind == 2) {
      ASSERT_EQ(opened, packet.data);
    }
  }
}

TEST(OpensslProvider, key__carries_nothing_between_packets_aes_gcm) {
  check_reuse(Suite::kAes256Gcm, EVP_aes_256_gcm());
}

TEST(OpensslProvider, key__carries_nothing_between_packets_chacha20_poly1305) {
  check_reuse(Suite::kChaCha20Poly1305, EVP_chacha20_poly1305());
}

TEST(OpensslProvider, suites__that_openssl_has) {
  EXPECT_EQ(openssl_provider(Suite::kAegis256x2), nullptr);
  const AeadProvider* const gcm = openssl_provider(Suite::kAes256Gcm);
  EXPECT_STREQ(gcm->name(), "openssl");
  EXPECT_EQ(gcm->key_bytes(), 32u);
  EXPECT_EQ(gcm->nonce_bytes(), 12u);
}

TEST(OpensslProvider, make_key__needs_the_right_size) {
  EXPECT_DEATH(openssl_provider(Suite::kAes256Gcm)->make_key(ByteVector(16)), "broken invariant");
}

}  // namespace
}  // namespace securefabric::crypto
