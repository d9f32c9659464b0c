// AEGIS-256X2 as RFC 10032 writes it down, for tests: one byte at a time, two states in an array,
// no vectors. Slow, not constant time, and shares nothing with the kernels.
#pragma once

#include <algorithm>
#include <array>
#include <bit>

#include "crypto/test_bytes.h"

namespace securefabric::crypto {

using AesBlock = std::array<uint8_t, 16>;

// FIPS 197 §5.1.1: inverse in GF(2^8), then an affine map.
inline const std::array<uint8_t, 256>& aes_substitutions() {
  static const std::array<uint8_t, 256> table = [] {
    std::array<uint8_t, 256> made{};
    made[0] = 0x63;
    // Powers of the generator 3 from both ends: those of 1/3 = 0xF6 are their inverses.
    std::array<uint8_t, 256> powers{};
    uint8_t power = 1;
    for (uint8_t& slot : powers) {
      slot = power;
      power = static_cast<uint8_t>(power ^ power << 1 ^ ((power & 0x80) != 0 ? 0x1B : 0));
    }
    for (size_t i = 0; i < 255; ++i) {
      const uint8_t inverse = powers[(255 - i) % 255];
      made[powers[i]] =
          static_cast<uint8_t>(inverse ^ std::rotl(inverse, 1) ^ std::rotl(inverse, 2) ^
                               std::rotl(inverse, 3) ^ std::rotl(inverse, 4) ^ 0x63);
    }
    return made;
  }();
  return table;
}

inline AesBlock operator^(AesBlock a, const AesBlock& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] ^= b[i];
  return a;
}
inline AesBlock operator&(AesBlock a, const AesBlock& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] &= b[i];
  return a;
}

// SubBytes, ShiftRows, MixColumns, AddRoundKey.
inline AesBlock aes_round(const AesBlock& in, const AesBlock& key) {
  const auto twice = [](uint8_t x) {
    return static_cast<uint8_t>(x << 1 ^ ((x & 0x80) != 0 ? 0x1B : 0));
  };
  AesBlock out;
  for (size_t column = 0; column < 4; ++column) {
    std::array<uint8_t, 4> s;
    for (size_t row = 0; row < 4; ++row) {
      s[row] = aes_substitutions()[in[4 * ((column + row) % 4) + row]];
    }
    for (size_t row = 0; row < 4; ++row) {
      const uint8_t a = s[row];
      const uint8_t b = s[(row + 1) % 4];
      out[4 * column + row] =
          static_cast<uint8_t>(twice(a) ^ twice(b) ^ b ^ s[(row + 2) % 4] ^ s[(row + 3) % 4]);
    }
  }
  return out ^ key;
}

class SlowAegis256x2 {
 public:
  SlowAegis256x2(base::Bytes key, base::Bytes nonce) {
    const AesBlock c0 = block(from_hex("000101020305080d1522375990e97962"));
    const AesBlock c1 = block(from_hex("db3d18556dc22ff12011314273b528dd"));
    const AesBlock k0 = block(key.first(16)), k1 = block(key.last(16));
    const AesBlock n0 = block(nonce.first(16)), n1 = block(nonce.last(16));
    for (uint8_t i = 0; i < 2; ++i) v_[i] = {k0 ^ n0, k1 ^ n1, c1, c0, k0 ^ c0, k1 ^ c1};
    for (int i = 0; i < 4; ++i) {
      for (const AesBlock& word : {k0, k1, k0 ^ n0, k1 ^ n1}) {
        for (uint8_t lane = 0; lane < 2; ++lane) {
          const AesBlock context = {lane, 1};
          v_[lane][3] = v_[lane][3] ^ context;
          v_[lane][5] = v_[lane][5] ^ context;
        }
        update({word, word});
      }
    }
  }

  // `in` has 32 bytes at most; what is missing counts as zeros.
  void absorb(base::Bytes in) {
    ByteVector padded(in.begin(), in.end());
    padded.resize(32);
    update({block(base::Bytes(padded).first(16)), block(base::Bytes(padded).last(16))});
  }

  void seal(base::Bytes in, ByteVector& out) {
    ByteVector stream;
    for (const auto& v : v_) {
      const AesBlock z = v[1] ^ v[4] ^ v[5] ^ (v[2] & v[3]);
      stream.insert(stream.end(), z.begin(), z.end());
    }
    absorb(in);
    for (size_t i = 0; i < in.size(); ++i) out.push_back(in[i] ^ stream[i]);
  }

  void finish(uint64_t aad_bits, uint64_t data_bits, ByteVector& out) {
    AesBlock lengths;
    for (size_t i = 0; i < 8; ++i) {
      lengths[i] = static_cast<uint8_t>(aad_bits >> 8 * i);
      lengths[8 + i] = static_cast<uint8_t>(data_bits >> 8 * i);
    }
    const std::array<AesBlock, 2> words = {v_[0][3] ^ lengths, v_[1][3] ^ lengths};
    for (int i = 0; i < 7; ++i) update(words);
    AesBlock tag{};
    for (const auto& v : v_) {
      for (const AesBlock& word : v) tag = tag ^ word;
    }
    out.insert(out.end(), tag.begin(), tag.end());
  }

 private:
  static AesBlock block(base::Bytes bytes) {
    AesBlock made;
    std::copy(bytes.begin(), bytes.end(), made.begin());
    return made;
  }

  void update(const std::array<AesBlock, 2>& message) {
    for (size_t lane = 0; lane < 2; ++lane) {
      const std::array<AesBlock, 6> old = v_[lane];
      v_[lane][0] = aes_round(old[5], old[0] ^ message[lane]);
      for (size_t i = 1; i < 6; ++i) v_[lane][i] = aes_round(old[i - 1], old[i]);
    }
  }

  std::array<std::array<AesBlock, 6>, 2> v_;  // V[word, lane] of the RFC is v_[lane][word]
};

inline ByteVector slow_aegis256x2_seal(base::Bytes key, base::Bytes nonce, base::Bytes aad,
                                       base::Bytes data) {
  SlowAegis256x2 aegis(key, nonce);
  for (size_t at = 0; at < aad.size(); at += 32) {
    aegis.absorb(aad.subspan(at, std::min<size_t>(32, aad.size() - at)));
  }
  ByteVector out;
  for (size_t at = 0; at < data.size(); at += 32) {
    aegis.seal(data.subspan(at, std::min<size_t>(32, data.size() - at)), out);
  }
  aegis.finish(8 * aad.size(), 8 * data.size(), out);
  return out;
}

}  // namespace securefabric::crypto
