#include "crypto/key_exchange.h"

#include <gtest/gtest.h>

#include "base/random.h"
#include "crypto/test_bytes.h"

namespace securefabric::crypto {
namespace {

using base::ErrorCode;
using base::to_hex;

KeyPair key_pair(std::string_view hex) {
  return KeyPair::from_private(to_secret(from_hex(hex)));
}

// RFC 7748 §6.1.
KeyPair alice() {
  return key_pair("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a");
}
KeyPair bob() {
  return key_pair("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb");
}

TEST(KeyPair, known__rfc_7748) {
  EXPECT_EQ(to_hex(alice().public_key()),
            "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a");
  EXPECT_EQ(to_hex(bob().public_key()),
            "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f");
  const char* const shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742";
  EXPECT_EQ(to_hex(alice().shared_secret(bob().public_key()).value().view()), shared);
  EXPECT_EQ(to_hex(bob().shared_secret(alice().public_key()).value().view()), shared);
}

TEST(KeyPair, shared_secret__agrees_for_random_keys) {
  base::Random random(2);
  for (int i = 0; i < 50; ++i) {
    const KeyPair a = KeyPair::from_private(to_secret(random_bytes(random, 32)));
    const KeyPair b = KeyPair::from_private(to_secret(random_bytes(random, 32)));
    EXPECT_EQ(to_hex(a.shared_secret(b.public_key()).value().view()),
              to_hex(b.shared_secret(a.public_key()).value().view()));
  }
}

TEST(KeyPair, shared_secret__refuses_points_of_low_order) {
  for (const char* const low_order : {
           "0000000000000000000000000000000000000000000000000000000000000000",
           "0100000000000000000000000000000000000000000000000000000000000000",
           "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
           "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
           "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
           "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
           "0000000000000000000000000000000000000000000000000000000000000080",
       }) {
    const auto shared = alice().shared_secret(from_hex(low_order));
    ASSERT_FALSE(shared.ok()) << low_order;
    EXPECT_EQ(shared.error().code, ErrorCode::kAuth);
  }
}

TEST(KeyPair, shared_secret__refuses_its_own_key_mirrored_back) {
  PublicKey mirrored = alice().public_key();
  EXPECT_FALSE(alice().shared_secret(mirrored).ok());
  mirrored.back() ^= 0x80;  // the same point: X25519 ignores the top bit
  EXPECT_FALSE(alice().shared_secret(mirrored).ok());
}

TEST(KeyPair, shared_secret__refuses_a_wrong_length) {
  EXPECT_FALSE(alice().shared_secret({}).ok());
  EXPECT_FALSE(alice().shared_secret(ByteVector(31, 9)).ok());
  EXPECT_FALSE(alice().shared_secret(ByteVector(33, 9)).ok());
}

TEST(KeyPair, from_private__needs_32_bytes) {
  EXPECT_DEATH(KeyPair::from_private(to_secret(ByteVector(31, 1))), "broken invariant");
}

}  // namespace
}  // namespace securefabric::crypto
