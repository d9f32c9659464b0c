#include "crypto/kdf.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

#include <algorithm>
#include <memory>

#include "base/check.h"

namespace securefabric::crypto {
namespace {

using base::Bytes;

// OpenSSL takes a null pointer for "use the last one", never for "empty".
const uint8_t* data_of(Bytes bytes) {
  static constexpr uint8_t kEmpty = 0;
  return bytes.empty() ? &kEmpty : bytes.data();
}

void hmac_into(Bytes key, Bytes message, base::MutableBytes out) {
  SF_CHECK(out.size() == kHashBytes);
  unsigned length = 0;
  const uint8_t* const done = HMAC(EVP_sha256(), data_of(key), static_cast<int>(key.size()),
                                   data_of(message), message.size(), out.data(), &length);
  SF_CHECK(done != nullptr && length == kHashBytes);
}

}  // namespace

Hash sha256(std::initializer_list<Bytes> parts) {
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(),
                                                                        &EVP_MD_CTX_free);
  SF_CHECK(context != nullptr && EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) == 1);
  for (const Bytes part : parts) {
    SF_CHECK(EVP_DigestUpdate(context.get(), data_of(part), part.size()) == 1);
  }
  Hash hash;
  SF_CHECK(EVP_DigestFinal_ex(context.get(), hash.data(), nullptr) == 1);
  return hash;
}

Hash hmac_sha256(Bytes key, Bytes message) {
  Hash hash;
  hmac_into(key, message, hash);
  return hash;
}

SecretBuffer hkdf_extract(Bytes salt, Bytes input) {
  SecretBuffer secret = SecretBuffer::allocate(kHashBytes);
  hmac_into(salt, input, secret.bytes());
  return secret;
}

SecretBuffer hkdf_expand(Bytes secret, Bytes info, size_t length) {
  SF_CHECK_MSG(length > 0 && length <= kHkdfBytesMax, std::to_string(length));
  SecretBuffer output = SecretBuffer::allocate(length);
  SecretBuffer block = SecretBuffer::allocate(kHashBytes);
  // The message of round i is T(i-1) ‖ info ‖ i, with T(0) empty: the first round starts at `info`.
  SecretBuffer message = SecretBuffer::allocate(kHashBytes + info.size() + 1);
  const base::MutableBytes bytes = message.bytes();
  std::copy(info.begin(), info.end(), bytes.begin() + kHashBytes);
  for (size_t at = 0; at < length; at += kHashBytes) {
    bytes.back() = static_cast<uint8_t>(at / kHashBytes + 1);
    hmac_into(secret, at == 0 ? bytes.subspan(kHashBytes) : bytes, block.bytes());
    std::copy(block.view().begin(), block.view().end(), bytes.begin());
    const Bytes used = block.view().first(std::min(kHashBytes, length - at));
    std::copy(used.begin(), used.end(), output.bytes().begin() + static_cast<ptrdiff_t>(at));
  }
  return output;
}

SecretBuffer expand_label(Bytes secret, std::string_view label, Bytes context, size_t length) {
  static constexpr std::string_view kPrefix = "sf1 ";
  SF_CHECK(kPrefix.size() + label.size() <= 255 && context.size() <= 255);
  std::array<uint8_t, 2 + 1 + 255 + 1 + 255> buffer;
  base::ByteWriter info(buffer);
  info.u16(static_cast<uint16_t>(length));
  info.u8(static_cast<uint8_t>(kPrefix.size() + label.size()));
  info.bytes({reinterpret_cast<const uint8_t*>(kPrefix.data()), kPrefix.size()});
  info.bytes({reinterpret_cast<const uint8_t*>(label.data()), label.size()});
  info.u8(static_cast<uint8_t>(context.size()));
  info.bytes(context);
  return hkdf_expand(secret, info.written(), length);
}

bool constant_time_equal(Bytes a, Bytes b) {
  return a.size() == b.size() && CRYPTO_memcmp(data_of(a), data_of(b), a.size()) == 0;
}

}  // namespace securefabric::crypto
