// Packet protection of one path in one direction. PROTOCOL.md §2 and §4.
//
// PathSealer and PathOpener own the keys and the counters that make them safe: the sealer takes
// every packet number itself, so a caller cannot repeat a nonce; the opener checks limit,
// generation and replay before it touches the cipher, and moves nothing before the tag verified.
// Both change keys by themselves every 2^generation_bits packets (a generation), without a word on
// the wire. A new epoch brings a fresh path secret; packet numbers go on across it, so that acks,
// losses and the replay window know nothing of epochs. One owner each, no lock.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>

#include "base/bytes.h"
#include "base/ids.h"
#include "crypto/aead.h"
#include "crypto/replay_window.h"
#include "crypto/secret.h"

namespace securefabric::crypto {

// Numbers from here on are never sealed and never opened. At 10^9 packets per second a path gets
// there after 146 years; an attacker gets there at once, and must not wrap a counter.
inline constexpr base::PacketNumber kPacketNumberEnd = base::PacketNumber{1} << 62;

// iv XOR (path id ‖ packet number), the layout of multipath QUIC: the last 12 bytes of the nonce
// carry the path id in 4 bytes, then the number in 8. nonce.size() == iv.size() >= 12.
void make_nonce(base::Bytes iv, base::PathId path, base::PacketNumber number,
                base::MutableBytes nonce);

// Which of the two epochs that may live at a time: the epoch's number modulo 2.
using EpochBit = uint8_t;

// The key and iv of one generation; empty until made.
struct GenerationKey {
  bool empty() const { return aead == nullptr; }

  uint64_t generation = 0;        // packet number >> generation_bits
  SecretBuffer iv;                // nonce_bytes() of the suite
  std::unique_ptr<AeadKey> aead;  // null when empty
};

class PathSealer {
 public:
  // 0 < generation_bits <= provider.generation_bits_max(); `provider` outlives this. Packets are
  // numbered from 0 to seal_limit - 1, which may be lower than the default but not higher.
  PathSealer(const AeadProvider& provider, SecretBuffer path_secret, base::PathId path,
             unsigned generation_bits, base::PacketNumber seal_limit = kPacketNumberEnd);

  // What the next seal will use: the caller writes it into the header, which is the aad.
  base::PacketNumber next_packet_number() const { return next_; }
  // Seals under next_packet_number(), which is burnt even if the packet is never sent. See
  // AeadKey::seal for the rest. False, and nothing sealed, at the seal limit or after wipe().
  [[nodiscard]] bool seal(base::Bytes aad, std::span<const base::Bytes> parts,
                          base::MutableBytes out, size_t following = 0);
  // Everything after this is sealed with keys of the next epoch; the old ones are wiped.
  void begin_epoch(SecretBuffer path_secret);
  // The link has ended: nothing is sealed any more.
  void wipe();

 private:
  const AeadProvider* provider_;   // of the job's suite
  base::PathId path_;              // goes into the nonce
  unsigned generation_bits_;       // log2 of the packets per generation
  base::PacketNumber seal_limit_;  // next_ never passes it
  base::PacketNumber next_ = 0;    // not yet used by any seal
  SecretBuffer path_secret_;       // of the epoch; every generation's key is made from it
  GenerationKey key_;              // of the last seal; empty before the first one of an epoch
};

enum class OpenStatus {
  kOk,
  kUnknownEpoch,      // no keys of this epoch: not yet, or no more
  kStaleGeneration,   // older than the previous generation: its key is gone
  kFutureGeneration,  // so far ahead of what was opened that no honest sender is there yet
  kReplayDuplicate,   // this number was opened before
  kReplayTooOld,      // below the replay window: may have been opened before
  kAuthFailed,        // not sealed by the peer, or damaged
  kLimit,             // a number that no sender may use
};

// Lower case words for counters and messages: "ok", "stale_generation", ...
const char* open_status_name(OpenStatus status);

class PathOpener {
 public:
  // As PathSealer; `path` is the sender's path id, as in the header. `epoch` is where it begins.
  PathOpener(const AeadProvider& provider, SecretBuffer path_secret, base::PathId path,
             unsigned generation_bits, EpochBit epoch = 0);

  // out.size() == sealed.size() - 16. On kAuthFailed `out` was wiped; on the other failures it was
  // not touched. Only kOk changes what later calls answer; hostile input never stops the process.
  [[nodiscard]] OpenStatus open(EpochBit epoch, base::PacketNumber number, base::Bytes aad,
                                base::Bytes sealed, base::MutableBytes out);
  // From now on packets of this epoch open as well. Whatever had its bit before is wiped.
  void install_epoch(EpochBit epoch, SecretBuffer path_secret);
  // Wipes the epoch's keys.
  void retire_epoch(EpochBit epoch);

  const ReplayWindow& window() const { return window_; }
  // Failed opens so far.
  uint64_t auth_failures() const { return auth_failures_; }

 private:
  // Keys of the newest generation, the one before and the one that was claimed last beyond it.
  static constexpr size_t kGenerationsKept = 3;
  struct Epoch {
    SecretBuffer path_secret;  // empty: no such epoch
    std::array<GenerationKey, kGenerationsKept> keys;
  };

  // What can be told without any crypto; kOk when the cipher has to decide.
  OpenStatus check(const Epoch& epoch, base::PacketNumber number) const;
  // Of a generation that check() let through. Made now if it has to be.
  GenerationKey& key_of(Epoch& epoch, uint64_t generation);
  // A packet of a newer generation verified: keys that check() admits no more are wiped.
  void adopt(uint64_t generation);

  const AeadProvider* provider_;  // of the job's suite
  base::PathId path_;             // goes into the nonce
  unsigned generation_bits_;      // log2 of the packets per generation
  uint64_t generation_ = 0;       // newest one that a packet verified under, in any epoch
  std::array<Epoch, 2> epochs_;   // by EpochBit
  ReplayWindow window_;           // numbers that were opened, over all generations and epochs
  uint64_t auth_failures_ = 0;    // opens that returned kAuthFailed
};

}  // namespace securefabric::crypto
