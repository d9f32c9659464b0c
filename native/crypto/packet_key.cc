#include "crypto/packet_key.h"

#include <openssl/crypto.h>

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "base/check.h"
#include "crypto/key_schedule.h"

namespace securefabric::crypto {
namespace {

using base::Bytes;
using base::MutableBytes;
using base::PacketNumber;

constexpr size_t kCounterBytes = 12;  // path id in 4, packet number in 8

// The nonce of one packet, on the stack; wiped, because it shows the iv to who knows the number.
class Nonce {
 public:
  Nonce(Bytes iv, base::PathId path, PacketNumber number) : size_(iv.size()) {
    make_nonce(iv, path, number, MutableBytes(bytes_).first(size_));
  }
  ~Nonce() { OPENSSL_cleanse(bytes_.data(), bytes_.size()); }
  Nonce(const Nonce&) = delete;
  Nonce& operator=(const Nonce&) = delete;
  Bytes view() const { return Bytes(bytes_).first(size_); }

 private:
  std::array<uint8_t, kNonceBytesMax> bytes_;  // the first size_ of them count
  size_t size_;                                // nonce_bytes() of the suite
};

GenerationKey make_generation_key(const AeadProvider& provider, Bytes path_secret,
                                  uint64_t generation) {
  PacketKey derived =
      derive_packet_key(path_secret, generation, provider.key_bytes(), provider.nonce_bytes());
  return {generation, std::move(derived.iv), provider.make_key(derived.key.view())};
}

void check_arguments(const AeadProvider& provider, unsigned generation_bits) {
  SF_CHECK_MSG(generation_bits > 0 && generation_bits <= provider.generation_bits_max(),
               std::to_string(generation_bits));
  SF_CHECK(provider.nonce_bytes() >= kCounterBytes && provider.nonce_bytes() <= kNonceBytesMax);
}

}  // namespace

void make_nonce(Bytes iv, base::PathId path, PacketNumber number, MutableBytes nonce) {
  SF_CHECK(iv.size() >= kCounterBytes && nonce.size() == iv.size());
  std::array<uint8_t, kCounterBytes> counter;
  base::ByteWriter writer(counter);
  writer.u32(path.value);
  writer.u64(number);
  std::copy(iv.begin(), iv.end(), nonce.begin());
  const MutableBytes tail = nonce.last(kCounterBytes);
  for (size_t i = 0; i < kCounterBytes; ++i) tail[i] ^= counter[i];
}

PathSealer::PathSealer(const AeadProvider& provider, SecretBuffer path_secret, base::PathId path,
                       unsigned generation_bits, PacketNumber seal_limit)
    : provider_(&provider),
      path_(path),
      generation_bits_(generation_bits),
      seal_limit_(seal_limit),
      path_secret_(std::move(path_secret)) {
  check_arguments(provider, generation_bits);
  SF_CHECK(!path_secret_.empty());
  SF_CHECK(seal_limit <= kPacketNumberEnd);
}

bool PathSealer::seal(Bytes aad, std::span<const Bytes> parts, MutableBytes out, size_t following) {
  const RegisterScrubber scrubber;
  if (next_ >= seal_limit_) [[unlikely]]
    return false;
  // PROTOCOL.md §2: a packet number is burnt when taken.
  const PacketNumber number = next_++;
  const uint64_t generation = number >> generation_bits_;
  if (key_.empty() || key_.generation != generation) [[unlikely]]
    key_ = make_generation_key(*provider_, path_secret_.view(), generation);
  key_.aead->seal(Nonce(key_.iv.view(), path_, number).view(), aad, parts, out, following);
  return true;
}

void PathSealer::begin_epoch(SecretBuffer path_secret) {
  SF_CHECK(!path_secret.empty());
  path_secret_ = std::move(path_secret);
  key_ = GenerationKey();
}

void PathSealer::wipe() {
  seal_limit_ = next_;
  path_secret_ = SecretBuffer();
  key_ = GenerationKey();
}

const char* open_status_name(OpenStatus status) {
  switch (status) {
    case OpenStatus::kOk: return "ok";
    case OpenStatus::kUnknownEpoch: return "unknown_epoch";
    case OpenStatus::kStaleGeneration: return "stale_generation";
    case OpenStatus::kFutureGeneration: return "future_generation";
    case OpenStatus::kReplayDuplicate: return "replay_duplicate";
    case OpenStatus::kReplayTooOld: return "replay_too_old";
    case OpenStatus::kAuthFailed: return "auth_failed";
    case OpenStatus::kLimit: return "limit";
  }
  return "unknown";
}

PathOpener::PathOpener(const AeadProvider& provider, SecretBuffer path_secret, base::PathId path,
                       unsigned generation_bits, EpochBit epoch)
    : provider_(&provider), path_(path), generation_bits_(generation_bits) {
  check_arguments(provider, generation_bits);
  install_epoch(epoch, std::move(path_secret));
}

OpenStatus PathOpener::open(EpochBit epoch_bit, PacketNumber number, Bytes aad, Bytes sealed,
                            MutableBytes out) {
  const RegisterScrubber scrubber;
  Epoch& epoch = epochs_[epoch_bit & 1];
  const OpenStatus known = check(epoch, number);
  if (known != OpenStatus::kOk) return known;
  const uint64_t generation = number >> generation_bits_;
  GenerationKey& key = key_of(epoch, generation);
  if (sealed.size() < kAuthTagBytes ||
      !key.aead->open(Nonce(key.iv.view(), path_, number).view(), aad, sealed, out)) [[unlikely]] {
    ++auth_failures_;
    return OpenStatus::kAuthFailed;
  }
  if (generation > generation_) [[unlikely]]
    adopt(generation);
  window_.commit(number);
  return OpenStatus::kOk;
}

void PathOpener::install_epoch(EpochBit epoch, SecretBuffer path_secret) {
  SF_CHECK(epoch < epochs_.size() && !path_secret.empty());
  epochs_[epoch] = Epoch{std::move(path_secret), {}};
}

void PathOpener::retire_epoch(EpochBit epoch) {
  SF_CHECK(epoch < epochs_.size());
  epochs_[epoch] = Epoch();
}

// PROTOCOL.md §4: the next generation, or any that begins within a replay window of what was
// opened, so that a burst of losses longer than a generation (they are short in tests) heals.
OpenStatus PathOpener::check(const Epoch& epoch, PacketNumber number) const {
  if (epoch.path_secret.empty()) return OpenStatus::kUnknownEpoch;
  if (number >= kPacketNumberEnd) return OpenStatus::kLimit;
  const uint64_t generation = number >> generation_bits_;
  const bool is_near = number < window_.largest() + ReplayWindow::kWindow;
  if (generation > generation_ + 1 && !is_near) return OpenStatus::kFutureGeneration;
  if (generation + 1 < generation_) return OpenStatus::kStaleGeneration;
  switch (window_.check(number)) {
    case Seen::kNew: return OpenStatus::kOk;
    case Seen::kDuplicate: return OpenStatus::kReplayDuplicate;
    case Seen::kTooOld: return OpenStatus::kReplayTooOld;
  }
  return OpenStatus::kReplayTooOld;
}

GenerationKey& PathOpener::key_of(Epoch& epoch, uint64_t generation) {
  // A claim beyond the newest generation has a place of its own: forgeries that claim one
  // generation after the other cost a derivation each and displace no key that is in use.
  GenerationKey& key = generation > generation_ ? epoch.keys.back() : epoch.keys[generation % 2];
  if (key.empty() || key.generation != generation) [[unlikely]]
    key = make_generation_key(*provider_, epoch.path_secret.view(), generation);
  return key;
}

void PathOpener::adopt(uint64_t generation) {
  generation_ = generation;
  const auto wipe_unless = [](GenerationKey& key, uint64_t kept) {
    if (!key.empty() && key.generation != kept) key = GenerationKey();
  };
  for (Epoch& epoch : epochs_) {
    GenerationKey& claimed = epoch.keys.back();
    GenerationKey& newest = epoch.keys[generation % 2];
    if (!claimed.empty() && claimed.generation == generation) newest = std::move(claimed);
    claimed = GenerationKey();
    wipe_unless(newest, generation);
    wipe_unless(epoch.keys[(generation + 1) % 2], generation - 1);
  }
}

}  // namespace securefabric::crypto
