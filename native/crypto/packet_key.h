// Packet protection of one path in one direction. PROTOCOL.md §2 and §4.
//
// PathSealer and PathOpener own the keys and the counters that make them safe: the sealer takes
// every packet number itself, so a caller cannot repeat a nonce; the opener checks limit,
// generation and replay before it touches the cipher, and moves nothing before the tag verified.
// Both change keys by themselves every 2^generation_bits packets (a generation), without a word on
// the wire. One owner each, no lock.
#pragma once

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

// One generation's secret, and the key and iv made from it on first use.
class GenerationKey {
 public:
  GenerationKey() = default;  // empty: keys of no generation
  explicit GenerationKey(SecretBuffer secret);

  bool empty() const { return secret_.empty(); }
  // The key of the generation after this one.
  GenerationKey next() const;
  // Derived now if this is the first use; afterwards iv() is set as well.
  AeadKey& key(const AeadProvider& provider);
  base::Bytes iv() const { return iv_.view(); }

 private:
  SecretBuffer secret_;           // generation secret; empty in an empty key
  SecretBuffer iv_;               // nonce_bytes() of the suite; empty until the first use
  std::unique_ptr<AeadKey> key_;  // null until the first use
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
  // AeadKey::seal for parts and out. False, and nothing sealed, at the seal limit.
  [[nodiscard]] bool seal(base::Bytes aad, std::span<const base::Bytes> parts,
                          base::MutableBytes out);

 private:
  const AeadProvider* provider_;   // of the job's suite
  base::PathId path_;              // goes into the nonce
  unsigned generation_bits_;       // log2 of the packets per generation
  base::PacketNumber seal_limit_;  // next_ never passes it
  base::PacketNumber next_ = 0;    // not yet used by any seal
  uint64_t generation_ = 0;        // of key_; next_ >> generation_bits_ or one less
  GenerationKey key_;              // of generation_; older ones are wiped
};

enum class OpenStatus {
  kOk,
  kStaleGeneration,   // older than the previous generation: its key is gone
  kFutureGeneration,  // newer than the next generation: no honest sender is there yet
  kReplayDuplicate,   // this number was opened before
  kReplayTooOld,      // below the replay window: may have been opened before
  kAuthFailed,        // not sealed by the peer, or damaged
  kLimit,             // a number that no sender may use
};

// Lower case words for counters and messages: "ok", "stale_generation", ...
const char* open_status_name(OpenStatus status);

class PathOpener {
 public:
  // As PathSealer; `path` is the sender's path id, as in the header.
  PathOpener(const AeadProvider& provider, SecretBuffer path_secret, base::PathId path,
             unsigned generation_bits);

  // out.size() == sealed.size() - 16. On kAuthFailed `out` was wiped; on the other failures it was
  // not touched. Only kOk changes what later calls answer; hostile input never stops the process.
  [[nodiscard]] OpenStatus open(base::PacketNumber number, base::Bytes aad, base::Bytes sealed,
                                base::MutableBytes out);

  const ReplayWindow& window() const { return window_; }
  // Failed opens so far; compare with AeadProvider::forgery_bits_max().
  uint64_t auth_failures() const { return auth_failures_; }

 private:
  // What can be told without any crypto; kOk when the cipher has to decide.
  OpenStatus check(base::PacketNumber number) const;
  // Of a generation that check() let through. Derives the next one's key if it has to.
  GenerationKey& key_of(uint64_t generation);
  // The next generation becomes the current one; the previous is wiped.
  void adopt_next();

  const AeadProvider* provider_;  // of the job's suite
  base::PathId path_;             // goes into the nonce
  unsigned generation_bits_;      // log2 of the packets per generation
  uint64_t generation_ = 0;       // newest one that a packet verified under
  GenerationKey previous_;        // generation_ - 1; empty in generation 0
  GenerationKey current_;         // generation_
  GenerationKey next_;            // generation_ + 1; empty until a packet claims it
  ReplayWindow window_;           // numbers that were opened, over all generations
  uint64_t auth_failures_ = 0;    // opens that returned kAuthFailed
};

}  // namespace securefabric::crypto
