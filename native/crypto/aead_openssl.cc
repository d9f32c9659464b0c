#include "crypto/aead_openssl.h"

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>

#include <array>
#include <limits>
#include <string>
#include <utility>

#include "base/check.h"

namespace securefabric::crypto {
namespace {

using base::Bytes;
using base::MutableBytes;

constexpr size_t kOpensslNonceBytes = 12;  // of both suites
// More than OpenSSL's frames below us take, of which ChaCha20's hold copies of the key.
constexpr size_t kStackBytes = 4096;

// Wipes the stack where functions that have returned left what they did not wipe.
[[gnu::noinline]] void wipe_stack() {
  std::array<uint8_t, kStackBytes> left;
  OPENSSL_cleanse(left.data(), left.size());
}

using Context = std::unique_ptr<EVP_CIPHER_CTX, decltype(&EVP_CIPHER_CTX_free)>;

// Everything that costs (fetch, allocation, key expansion) happens once per key; a packet sets the
// nonce and moves bytes. OpenSSL wipes its context, expanded keys included, when it is freed.
class OpensslKey final : public AeadKey {
 public:
  OpensslKey(const EVP_CIPHER* cipher, Bytes key)
      : context_(EVP_CIPHER_CTX_new(), &EVP_CIPHER_CTX_free) {
    SF_CHECK(context_ != nullptr);
    SF_CHECK(EVP_CipherInit_ex2(context_.get(), cipher, key.data(), nullptr, 1, nullptr) == 1);
  }

  void seal(Bytes nonce, Bytes aad, std::span<const Bytes> parts, MutableBytes out,
            size_t /*following*/) override {
    start(nonce, aad, 1);
    size_t written = 0;
    for (const Bytes part : parts) {
      SF_CHECK(part.size() + kAuthTagBytes <= out.size() - written);
      update(out.data() + written, part);
      written += part.size();
    }
    SF_CHECK(written + kAuthTagBytes == out.size());
    int unused = 0;
    uint8_t* const tag = out.data() + written;
    SF_CHECK(EVP_CipherFinal_ex(context_.get(), tag, &unused) == 1 && unused == 0);
    SF_CHECK(EVP_CIPHER_CTX_ctrl(context_.get(), EVP_CTRL_AEAD_GET_TAG, kAuthTagBytes, tag) == 1);
    wipe_stack();
  }

  bool open(Bytes nonce, Bytes aad, Bytes sealed, MutableBytes out) override {
    SF_CHECK(sealed.size() >= kAuthTagBytes && out.size() == sealed.size() - kAuthTagBytes);
    const Bytes tag = sealed.last(kAuthTagBytes);
    start(nonce, aad, 0);
    // OpenSSL only reads the tag; its interface predates const.
    SF_CHECK(EVP_CIPHER_CTX_ctrl(context_.get(), EVP_CTRL_AEAD_SET_TAG, kAuthTagBytes,
                                 const_cast<uint8_t*>(tag.data())) == 1);
    update(out.data(), sealed.first(out.size()));
    uint8_t nothing_more = 0;
    int unused = 0;
    const bool is_genuine = EVP_CipherFinal_ex(context_.get(), &nothing_more, &unused) == 1;
    wipe_stack();
    if (is_genuine) return true;
    if (!out.empty()) OPENSSL_cleanse(out.data(), out.size());
    ERR_clear_error();
    return false;
  }

 private:
  void start(Bytes nonce, Bytes aad, int enc) {
    SF_CHECK(nonce.size() == kOpensslNonceBytes);
    SF_CHECK(EVP_CipherInit_ex2(context_.get(), nullptr, nullptr, nonce.data(), enc, nullptr) == 1);
    if (!aad.empty()) update(nullptr, aad);
  }

  // `out` null: the bytes are authenticated only. Both AEADs are stream ciphers here, so as many
  // bytes come out as go in, wherever the message is cut.
  void update(uint8_t* out, Bytes in) {
    if (in.empty()) return;
    SF_CHECK(in.size() <= static_cast<size_t>(std::numeric_limits<int>::max()));
    int moved = 0;
    const int length = static_cast<int>(in.size());
    SF_CHECK(EVP_CipherUpdate(context_.get(), out, &moved, in.data(), length) == 1);
    SF_CHECK(moved == length);
  }

  Context context_;  // holds the expanded key for ever, and the nonce of the packet in work
};

class OpensslProvider final : public AeadProvider {
 public:
  OpensslProvider(Suite suite, const char* openssl_name)
      : AeadProvider(suite, "openssl"), cipher_(EVP_CIPHER_fetch(nullptr, openssl_name, nullptr)) {
    SF_CHECK_MSG(cipher_ != nullptr, openssl_name);
    SF_CHECK(EVP_CIPHER_get_key_length(cipher_) == static_cast<int>(key_bytes()));
    SF_CHECK(EVP_CIPHER_get_iv_length(cipher_) == static_cast<int>(kOpensslNonceBytes));
  }

  std::unique_ptr<AeadKey> make_key(Bytes key) const override {
    SF_CHECK_MSG(key.size() == key_bytes(), std::to_string(key.size()));
    return std::make_unique<OpensslKey>(cipher_, key);
  }

 private:
  EVP_CIPHER* const cipher_;  // fetched once; never freed, as providers live for ever
};

}  // namespace

const AeadProvider* openssl_provider(Suite suite) {
  switch (suite) {
    case Suite::kAes256Gcm: {
      static const OpensslProvider* const provider =
          new OpensslProvider(Suite::kAes256Gcm, "AES-256-GCM");
      return provider;
    }
    case Suite::kChaCha20Poly1305: {
      static const OpensslProvider* const provider =
          new OpensslProvider(Suite::kChaCha20Poly1305, "ChaCha20-Poly1305");
      return provider;
    }
    case Suite::kAegis256x2: return nullptr;
  }
  return nullptr;
}

}  // namespace securefabric::crypto
