#include "crypto/kdf.h"

#include <gtest/gtest.h>

#include <string>

#include "crypto/test_bytes.h"

namespace securefabric::crypto {
namespace {

using base::to_hex;

TEST(Sha256, parts__equal_their_concatenation) {
  const char* const abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
  EXPECT_EQ(to_hex(sha256({from_text("abc")})), abc);  // FIPS 180-2, appendix B.1
  EXPECT_EQ(to_hex(sha256({from_text("a"), base::Bytes{}, from_text("bc")})), abc);
  EXPECT_EQ(to_hex(sha256({})), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

TEST(HmacSha256, known__rfc_4231) {
  EXPECT_EQ(to_hex(hmac_sha256(ByteVector(20, 0x0b), from_text("Hi There"))),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
  EXPECT_EQ(to_hex(hmac_sha256(from_text("Jefe"), from_text("what do ya want for nothing?"))),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
  EXPECT_EQ(
      to_hex(hmac_sha256(ByteVector(131, 0xaa),
                         from_text("Test Using Larger Than Block-Size Key - Hash Key First"))),
      "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
}

TEST(HmacSha256, empty__key_and_message) {
  EXPECT_EQ(to_hex(hmac_sha256({}, {})),
            "b613679a0814d9ec772f95d778c35fc5ff1697c493715653c6c712144292c5ad");
}

TEST(Hkdf, known__rfc_5869_case_1) {
  const SecretBuffer prk =
      hkdf_extract(from_hex("000102030405060708090a0b0c"), ByteVector(22, 0x0b));
  EXPECT_EQ(to_hex(prk.view()), "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5");
  const SecretBuffer okm = hkdf_expand(prk.view(), from_hex("f0f1f2f3f4f5f6f7f8f9"), 42);
  EXPECT_EQ(to_hex(okm.view()),
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
            "34007208d5b887185865");
}

TEST(Hkdf, known__rfc_5869_case_3_without_salt_and_info) {
  const SecretBuffer prk = hkdf_extract({}, ByteVector(22, 0x0b));
  EXPECT_EQ(to_hex(prk.view()), "19ef24a32c717b167f33a91d6f648bdf96596776afdb6377ac434c1c293ccb04");
  EXPECT_EQ(to_hex(hkdf_expand(prk.view(), {}, 42).view()),
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
            "9d201395faa4b61a96c8");
}

TEST(Hkdf, expand__is_a_prefix_of_a_longer_expand) {
  const ByteVector secret(32, 7);
  const SecretBuffer longest = hkdf_expand(secret, from_text("info"), kHkdfBytesMax);
  for (const size_t length : {1u, 31u, 32u, 33u, 64u, 1000u}) {
    const SecretBuffer shorter = hkdf_expand(secret, from_text("info"), length);
    EXPECT_EQ(to_hex(shorter.view()), to_hex(longest.view().first(length)));
  }
  EXPECT_DEATH(hkdf_expand(secret, {}, kHkdfBytesMax + 1), "broken invariant");
  EXPECT_DEATH(hkdf_expand(secret, {}, 0), "broken invariant");
}

TEST(ExpandLabel, info__has_the_documented_encoding) {
  const ByteVector secret(32, 9);
  ByteVector info = from_hex(
      "0020"
      "08");
  for (const char c : std::string("sf1 path")) info.push_back(static_cast<uint8_t>(c));
  for (const uint8_t byte : from_hex("02"
                                     "0102"))
    info.push_back(byte);
  EXPECT_EQ(to_hex(expand_label(secret, "path", from_hex("0102"), 32).view()),
            to_hex(hkdf_expand(secret, info, 32).view()));
}

TEST(ExpandLabel, boundary__between_label_and_context_counts) {
  const ByteVector secret(32, 9);
  const auto label = [&secret](std::string_view name, std::string_view context, size_t length) {
    return to_hex(expand_label(secret, name, from_text(context), length).view().first(16));
  };
  EXPECT_NE(label("ab", "c", 32), label("a", "bc", 32));
  EXPECT_NE(label("ab", "", 32), label("ab", "", 16));
}

TEST(ConstantTimeEqual, compares__content_and_length) {
  EXPECT_TRUE(constant_time_equal(from_text("same"), from_text("same")));
  EXPECT_FALSE(constant_time_equal(from_text("same"), from_text("sane")));
  EXPECT_FALSE(constant_time_equal(from_text("same"), from_text("sam")));
  EXPECT_TRUE(constant_time_equal({}, {}));
}

}  // namespace
}  // namespace securefabric::crypto
