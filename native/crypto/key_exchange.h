// X25519 (RFC 7748). The private half is given in, lives in secret memory, and dies with the
// object.
#pragma once

#include <array>
#include <cstdint>

#include "base/bytes.h"
#include "base/result.h"
#include "crypto/secret.h"

namespace securefabric::crypto {

inline constexpr size_t kPrivateKeyBytes = 32;
inline constexpr size_t kPublicKeyBytes = 32;
inline constexpr size_t kSharedSecretBytes = 32;
using PublicKey = std::array<uint8_t, kPublicKeyBytes>;

class KeyPair {
 public:
  // 32 random bytes from the driver: this room reads no entropy.
  static KeyPair from_private(SecretBuffer private_key);

  PublicKey public_key() const { return public_key_; }

  // The private key is gone, and no secret can be agreed on any more.
  void wipe() { private_key_ = SecretBuffer(); }

  // kAuth when the peer's key has a wrong length, is our own mirrored back, or is a point of low
  // order, whose result would be all zeros whatever our key is (RFC 7748 §6.1).
  base::Result<SecretBuffer> shared_secret(base::Bytes peer_public) const;

 private:
  KeyPair(SecretBuffer private_key, const PublicKey& public_key);

  SecretBuffer private_key_;  // as given; X25519 clamps it at every use
  PublicKey public_key_;      // of private_key_
};

}  // namespace securefabric::crypto
