// From two roster entries to packet keys. PROTOCOL.md §3.3 and §4.
//
//   salt   = SHA-256("sf1 link" ‖ len(entry_low) ‖ entry_low ‖ len(entry_high) ‖ entry_high
//                    ‖ engine)                            lengths: 8 bytes, engine: 4
//   link   = HKDF-Extract(salt, X25519(own, peer) ‖ job_secret ‖ kem_secret)
//   each link'  = HKDF-Extract(Label(link, "epoch", SHA-256("sf1 epoch" ‖ public_low ‖ public_high)
//                               ‖ epoch), X25519(own', peer'))             the next epoch
//   dir    = Label(link, "dir", from ‖ to ‖ epoch)                         4 bytes each
//   path   = Label(dir, "path", path_id)                                   2 bytes
//   key_n  = Label(path, "key", n);  iv_n = Label(path, "iv", n)            8 bytes, generation n
//
// Label is expand_label of kdf.h; it binds the length, so a key and an iv of equal labels differ
// between suites with different sizes. All secrets are 32 bytes; integers are in network order.
// "low" and "high" order the two ends by rank, so both compute the same. The job secret and the
// secret encapsulated by ML-KEM-768 have 32 bytes or, where the job has none, no bytes; the policy
// in both entries says which are there, so equal inputs mean equal parts.
#pragma once

#include <cstdint>

#include "base/bytes.h"
#include "base/ids.h"
#include "base/result.h"
#include "crypto/key_exchange.h"
#include "crypto/secret.h"

namespace securefabric::crypto {

// What both ends of a link share in the first epoch. kAuth as KeyPair::shared_secret. The engines
// of a rank have key pairs of their own; their number keeps links apart even if two were equal.
base::Result<SecretBuffer> derive_link_secret(const KeyPair& own, base::Bytes peer_public,
                                              base::Bytes own_entry, base::Bytes peer_entry,
                                              bool own_is_low, uint32_t engine,
                                              base::Bytes job_secret, base::Bytes kem_secret = {});

// The link secret of `epoch`, from that of the epoch before and a fresh key pair on both sides. It
// needs both: who learns one old link secret cannot follow without breaking X25519 as well.
base::Result<SecretBuffer> derive_epoch_link_secret(base::Bytes previous_link, const KeyPair& own,
                                                    base::Bytes peer_public, bool own_is_low,
                                                    uint32_t epoch);

// Each direction of a link has its own keys, so a reflected packet never opens.
SecretBuffer derive_direction_secret(base::Bytes link, base::Rank from, base::Rank to,
                                     uint32_t epoch);

SecretBuffer derive_path_secret(base::Bytes direction, base::PathId path);

struct PacketKey {
  SecretBuffer key;  // of the suite's AEAD
  SecretBuffer iv;   // XORed with (path id, packet number) into the nonce
};
// Generations are no chain: an epoch may begin at any packet number without a word about it. What
// protects the past is the epoch, whose secret replaces the one before.
PacketKey derive_packet_key(base::Bytes path_secret, uint64_t generation, size_t key_bytes,
                            size_t nonce_bytes);

}  // namespace securefabric::crypto
