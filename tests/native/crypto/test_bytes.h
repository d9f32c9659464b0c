// What the tests of this room share: bytes from text, and secrets from bytes.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/random.h"
#include "crypto/secret.h"

namespace securefabric::crypto {

using ByteVector = std::vector<uint8_t>;

inline ByteVector from_hex(std::string_view hex) {
  const auto digit = [](char c) { return c <= '9' ? c - '0' : c - 'a' + 10; };
  ByteVector bytes(hex.size() / 2);
  for (size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<uint8_t>(digit(hex[2 * i]) << 4 | digit(hex[2 * i + 1]));
  }
  return bytes;
}

inline ByteVector from_text(std::string_view text) {
  return {text.begin(), text.end()};
}

inline SecretBuffer to_secret(ByteVector bytes) {
  return SecretBuffer::copy_and_wipe(bytes);
}

inline ByteVector random_bytes(base::Random& random, size_t size) {
  ByteVector bytes(size);
  random.fill(bytes);
  return bytes;
}

}  // namespace securefabric::crypto
