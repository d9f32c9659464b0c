#include "crypto/key_exchange.h"

#include <openssl/err.h>
#include <openssl/evp.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "base/check.h"
#include "crypto/kdf.h"

namespace securefabric::crypto {
namespace {

using base::Error;
using base::ErrorCode;
using Key = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;

// OpenSSL's own copy of the private key lives as long as this object, and is wiped with it.
Key load_private(const SecretBuffer& private_key) {
  Key key(EVP_PKEY_new_raw_private_key(EVP_PKEY_X25519, nullptr, private_key.view().data(),
                                       private_key.size()),
          &EVP_PKEY_free);
  SF_CHECK(key != nullptr);
  return key;
}

// The curve ignores the top bit of a public key, so two keys that differ only there are one.
bool is_same_point(base::Bytes a, const PublicKey& b) {
  return std::equal(a.begin(), a.end() - 1, b.begin()) && ((a.back() ^ b.back()) & 0x7F) == 0;
}

}  // namespace

KeyPair::KeyPair(SecretBuffer private_key, const PublicKey& public_key)
    : private_key_(std::move(private_key)), public_key_(public_key) {}

KeyPair KeyPair::from_private(SecretBuffer private_key) {
  const RegisterScrubber scrubber;
  SF_CHECK_MSG(private_key.size() == kPrivateKeyBytes, std::to_string(private_key.size()));
  PublicKey public_key;
  size_t length = public_key.size();
  const Key key = load_private(private_key);
  SF_CHECK(EVP_PKEY_get_raw_public_key(key.get(), public_key.data(), &length) == 1);
  SF_CHECK(length == kPublicKeyBytes);
  return {std::move(private_key), public_key};
}

base::Result<SecretBuffer> KeyPair::shared_secret(base::Bytes peer_public) const {
  const RegisterScrubber scrubber;
  if (peer_public.size() != kPublicKeyBytes) {
    return Error{ErrorCode::kAuth, "the peer's X25519 public key has " +
                                       std::to_string(peer_public.size()) + " bytes, not 32"};
  }
  if (is_same_point(peer_public, public_key_)) {
    return Error{ErrorCode::kAuth, "the peer's X25519 public key is our own, mirrored back"};
  }
  const Key own = load_private(private_key_);
  const Key peer(
      EVP_PKEY_new_raw_public_key(EVP_PKEY_X25519, nullptr, peer_public.data(), peer_public.size()),
      &EVP_PKEY_free);
  const std::unique_ptr<EVP_PKEY_CTX, decltype(&EVP_PKEY_CTX_free)> context(
      EVP_PKEY_CTX_new(own.get(), nullptr), &EVP_PKEY_CTX_free);
  SF_CHECK(peer != nullptr && context != nullptr);
  SF_CHECK(EVP_PKEY_derive_init(context.get()) == 1);
  SF_CHECK(EVP_PKEY_derive_set_peer(context.get(), peer.get()) == 1);
  SecretBuffer shared = SecretBuffer::allocate(kSharedSecretBytes);
  size_t length = shared.size();
  static constexpr std::array<uint8_t, kSharedSecretBytes> kZeros{};
  // OpenSSL fails on an all-zero result itself; checking again does not depend on its version.
  if (EVP_PKEY_derive(context.get(), shared.bytes().data(), &length) != 1 ||
      constant_time_equal(shared.view(), kZeros)) {
    ERR_clear_error();
    return Error{ErrorCode::kAuth, "the peer's X25519 public key is a point of low order"};
  }
  SF_CHECK(length == kSharedSecretBytes);
  return shared;
}

}  // namespace securefabric::crypto
