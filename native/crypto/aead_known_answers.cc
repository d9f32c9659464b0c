#include "crypto/aead_known_answers.h"

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace securefabric::crypto {
namespace {

using base::Bytes;
using base::Error;
using base::ErrorCode;
using base::Status;

// All in hexadecimal.
struct KnownAnswer {
  Suite suite;                 // whose standard it is from
  std::string_view key;        // key_bytes()
  std::string_view nonce;      // nonce_bytes()
  std::string_view aad;        // authenticated, clear
  std::string_view plaintext;  // any length
  std::string_view sealed;     // ciphertext, then the tag
  // The tag of the same packet with its plaintext repeated kRepeats times, long enough for every
  // loop of a kernel. The standards have no such vector: these are what OpenSSL and libaegis say.
  std::string_view long_tag;
};
constexpr size_t kRepeats = 21;

constexpr std::array kKnownAnswers = {
    // McGrew and Viega, "The Galois/Counter Mode of Operation", appendix B, test case 16.
    KnownAnswer{Suite::kAes256Gcm,
                "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
                "cafebabefacedbaddecaf888", "feedfacedeadbeeffeedfacedeadbeefabaddad2",
                "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
                "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
                "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
                "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
                "76fc6ece0f4e1768cddf8853bb2d551b",
                "2e7f60711fbde4c0549c75fe955ce281"},
    // RFC 10032, appendix of test vectors, AEGIS-256X2, test vector 2.
    KnownAnswer{
        Suite::kAegis256x2, "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
        "101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f", "0102030401020304",
        "0405060704050607040506070405060704050607040506070405060704050607"
        "0405060704050607040506070405060704050607040506070405060704050607"
        "0405060704050607040506070405060704050607040506070405060704050607"
        "040506070405060704050607040506070405060704050607",
        "72120c2ea8236180d67859001f4729077b7064c414384fe3a7b52f1571f4f8a7"
        "d0f01e18db4f3bc0adb150702e5d147a8d36522132761b994c1bd395589e2ccf"
        "0790dfe2a3d12d61cd666b2859827739db4037dd3124c78424459376f6cac08e"
        "1a7223a2a43e398ce6385cd654a19f481cba3b8f25910b42"
        "635d391828520bf1512763f0c8f5cdbd",
        "657fd53bbc2291dbb5ccea6ef8c31400"},
    // RFC 8439 §2.8.2.
    KnownAnswer{Suite::kChaCha20Poly1305,
                "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f",
                "070000004041424344454647", "50515253c0c1c2c3c4c5c6c7",
                "4c616469657320616e642047656e746c656d656e206f662074686520636c6173"
                "73206f66202739393a204966204920636f756c64206f6666657220796f75206f"
                "6e6c79206f6e652074697020666f7220746865206675747572652c2073756e73"
                "637265656e20776f756c642062652069742e",
                "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d6"
                "3dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b36"
                "92ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc"
                "3ff4def08e4b7a9de576d26586cec64b6116"
                "1ae10b594f09e26a7e902ecbd0600691",
                "cf56b37b3e26b335dd119feb4b9b3dda"},
};

uint8_t digit(char c) {
  return static_cast<uint8_t>(c <= '9' ? c - '0' : c - 'a' + 10);
}

std::vector<uint8_t> from_hex(std::string_view hex) {
  std::vector<uint8_t> bytes(hex.size() / 2);
  for (size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<uint8_t>(digit(hex[2 * i]) << 4 | digit(hex[2 * i + 1]));
  }
  return bytes;
}

// Null when the provider answers rightly, else what it got wrong.
const char* first_wrong_answer(AeadKey& key, Bytes nonce, std::vector<uint8_t> aad, Bytes plaintext,
                               std::vector<uint8_t> sealed) {
  std::vector<uint8_t> opened(plaintext.size());
  if (!key.open(nonce, aad, sealed, opened)) return "open refused a genuine packet";
  if (!std::equal(opened.begin(), opened.end(), plaintext.begin())) {
    return "open gave a wrong answer";
  }
  sealed.back() ^= 1;
  if (key.open(nonce, aad, sealed, opened)) return "open accepted a forged tag";
  if (std::any_of(opened.begin(), opened.end(), [](uint8_t byte) { return byte != 0; })) {
    return "open released the plaintext of a forgery";
  }
  sealed.back() ^= 1;
  sealed.front() ^= 0x80;
  if (key.open(nonce, aad, sealed, opened)) return "open accepted a forged ciphertext";
  sealed.front() ^= 0x80;
  aad.front() ^= 1;
  if (key.open(nonce, aad, sealed, opened)) return "open accepted a forged header";
  return nullptr;
}

const char* first_wrong_answer(const AeadProvider& provider, const KnownAnswer& answer) {
  const auto nonce = from_hex(answer.nonce);
  const auto aad = from_hex(answer.aad);
  const auto plaintext = from_hex(answer.plaintext);
  const auto secret = from_hex(answer.key);
  const std::unique_ptr<AeadKey> key = provider.make_key(secret);

  // Cut where no block ends, so that the gathering is checked as well.
  std::vector<Bytes> parts = {Bytes(plaintext).first(5), Bytes(plaintext).subspan(5)};
  std::vector<uint8_t> sealed(plaintext.size() + kAuthTagBytes);
  key->seal(nonce, aad, parts, sealed);
  if (sealed != from_hex(answer.sealed)) return "seal gave a wrong answer";
  if (const char* wrong = first_wrong_answer(*key, nonce, aad, plaintext, sealed)) return wrong;

  std::vector<uint8_t> repeated;
  for (size_t i = 0; i < kRepeats; ++i) {
    repeated.insert(repeated.end(), plaintext.begin(), plaintext.end());
  }
  parts = {Bytes(repeated).first(5), Bytes(repeated).subspan(5)};
  sealed.resize(repeated.size() + kAuthTagBytes);
  key->seal(nonce, aad, parts, sealed);
  if (!std::equal(sealed.end() - kAuthTagBytes, sealed.end(), from_hex(answer.long_tag).begin())) {
    return "seal gave a wrong answer to a long packet";
  }
  return first_wrong_answer(*key, nonce, aad, repeated, sealed);
}

}  // namespace

Status check_known_answers(const AeadProvider& provider) {
  const char* wrong = "there is no known answer to check it with";
  for (const KnownAnswer& answer : kKnownAnswers) {
    if (answer.suite == provider.suite()) wrong = first_wrong_answer(provider, answer);
  }
  if (wrong == nullptr) return base::ok_status();
  return Error{ErrorCode::kConfig, std::string("the ") + provider.name() + " provider of " +
                                       suite_name(provider.suite()) +
                                       " failed its self-test and is not used: " + wrong +
                                       "; it or this CPU is broken"};
}

}  // namespace securefabric::crypto
