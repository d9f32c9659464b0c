#include "crypto/key_schedule.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "crypto/kdf.h"

namespace securefabric::crypto {
namespace {

using base::Bytes;
using base::Result;

Bytes text_bytes(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

std::array<uint8_t, 8> length_of(Bytes bytes) {
  std::array<uint8_t, 8> encoded;
  base::ByteWriter(encoded).u64(bytes.size());
  return encoded;
}

// Extract(salt, first ‖ second ‖ third) with the concatenation in secret memory.
SecretBuffer extract_all(Bytes salt, Bytes first, Bytes second, Bytes third) {
  SecretBuffer input = SecretBuffer::allocate(first.size() + second.size() + third.size());
  base::ByteWriter writer(input.bytes());
  writer.bytes(first);
  writer.bytes(second);
  writer.bytes(third);
  return hkdf_extract(salt, input.view());
}

}  // namespace

Result<SecretBuffer> derive_link_secret(const KeyPair& own, Bytes peer_public, Bytes own_entry,
                                        Bytes peer_entry, bool own_is_low, uint32_t engine,
                                        Bytes job_secret, Bytes kem_secret) {
  const RegisterScrubber scrubber;
  Result<SecretBuffer> shared = own.shared_secret(peer_public);
  if (!shared.ok()) return shared;
  const Bytes low = own_is_low ? own_entry : peer_entry;
  const Bytes high = own_is_low ? peer_entry : own_entry;
  std::array<uint8_t, 4> number;
  base::ByteWriter(number).u32(engine);
  const Hash salt =
      sha256({text_bytes("sf1 link"), length_of(low), low, length_of(high), high, number});
  return extract_all(salt, shared.value().view(), job_secret, kem_secret);
}

Result<SecretBuffer> derive_epoch_link_secret(Bytes previous_link, const KeyPair& own,
                                              Bytes peer_public, bool own_is_low, uint32_t epoch) {
  const RegisterScrubber scrubber;
  Result<SecretBuffer> shared = own.shared_secret(peer_public);
  if (!shared.ok()) return shared;
  const PublicKey own_public = own.public_key();
  const Bytes low = own_is_low ? Bytes(own_public) : peer_public;
  const Bytes high = own_is_low ? peer_public : Bytes(own_public);
  std::array<uint8_t, kHashBytes + 4> context;
  base::ByteWriter writer(context);
  writer.bytes(sha256({text_bytes("sf1 epoch"), low, high}));
  writer.u32(epoch);
  const SecretBuffer salt = expand_label(previous_link, "epoch", context, kHashBytes);
  return hkdf_extract(salt.view(), shared.value().view());
}

SecretBuffer derive_direction_secret(Bytes link, base::Rank from, base::Rank to, uint32_t epoch) {
  const RegisterScrubber scrubber;
  std::array<uint8_t, 12> context;
  base::ByteWriter writer(context);
  writer.u32(from.value);
  writer.u32(to.value);
  writer.u32(epoch);
  return expand_label(link, "dir", context, kHashBytes);
}

SecretBuffer derive_path_secret(Bytes direction, base::PathId path) {
  const RegisterScrubber scrubber;
  std::array<uint8_t, 2> context;
  base::ByteWriter(context).u16(path.value);
  return expand_label(direction, "path", context, kHashBytes);
}

PacketKey derive_packet_key(Bytes path_secret, uint64_t generation, size_t key_bytes,
                            size_t nonce_bytes) {
  const RegisterScrubber scrubber;
  std::array<uint8_t, 8> context;
  base::ByteWriter(context).u64(generation);
  return {expand_label(path_secret, "key", context, key_bytes),
          expand_label(path_secret, "iv", context, nonce_bytes)};
}

}  // namespace securefabric::crypto
