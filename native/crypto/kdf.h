// SHA-256, HMAC-SHA256, HKDF-SHA256 (RFC 5869) and a comparison in constant time.
//
// HKDF is written out over HMAC here, because OpenSSL 3.0's own bounds `info` and refuses empty
// inputs that the RFC allows. Secrets in, secrets out: every intermediate lies in secret memory.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string_view>

#include "base/bytes.h"
#include "crypto/secret.h"

namespace securefabric::crypto {

inline constexpr size_t kHashBytes = 32;
using Hash = std::array<uint8_t, kHashBytes>;

// Of the concatenation of `parts`; who needs it unambiguous frames the parts.
Hash sha256(std::initializer_list<base::Bytes> parts);

Hash hmac_sha256(base::Bytes key, base::Bytes message);

// RFC 5869 §2.2. Any argument may be empty.
SecretBuffer hkdf_extract(base::Bytes salt, base::Bytes input);

// RFC 5869 §2.3. 0 < length <= kHkdfBytesMax.
SecretBuffer hkdf_expand(base::Bytes secret, base::Bytes info, size_t length);
inline constexpr size_t kHkdfBytesMax = 255 * kHashBytes;

// The only way this project expands: info = length (2 bytes) ‖ label length (1) ‖ "sf1 " label ‖
// context length (1) ‖ context. Length-prefixed, so no two (label, context, length) collide. Label
// with its prefix and context are at most 255 bytes each.
SecretBuffer expand_label(base::Bytes secret, std::string_view label, base::Bytes context,
                          size_t length);

// False at once when the lengths differ (they are public); otherwise time depends on nothing else.
bool constant_time_equal(base::Bytes a, base::Bytes b);

}  // namespace securefabric::crypto
