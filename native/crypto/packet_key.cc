#include "crypto/packet_key.h"

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

// The nonce of one packet, on the stack.
class Nonce {
 public:
  Nonce(Bytes iv, base::PathId path, PacketNumber number) : size_(iv.size()) {
    make_nonce(iv, path, number, MutableBytes(bytes_).first(size_));
  }
  Bytes view() const { return Bytes(bytes_).first(size_); }

 private:
  std::array<uint8_t, kNonceBytesMax> bytes_;  // the first size_ of them count
  size_t size_;                                // nonce_bytes() of the suite
};

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

GenerationKey::GenerationKey(SecretBuffer secret) : secret_(std::move(secret)) {
  SF_CHECK(!secret_.empty());
}

GenerationKey GenerationKey::next() const {
  return GenerationKey(next_generation_secret(secret_.view()));
}

AeadKey& GenerationKey::key(const AeadProvider& provider) {
  if (key_ == nullptr) [[unlikely]] {
    PacketKey derived =
        derive_packet_key(secret_.view(), provider.key_bytes(), provider.nonce_bytes());
    key_ = provider.make_key(derived.key.view());
    iv_ = std::move(derived.iv);
  }
  return *key_;
}

PathSealer::PathSealer(const AeadProvider& provider, SecretBuffer path_secret, base::PathId path,
                       unsigned generation_bits, PacketNumber seal_limit)
    : provider_(&provider),
      path_(path),
      generation_bits_(generation_bits),
      seal_limit_(seal_limit),
      key_(std::move(path_secret)) {
  check_arguments(provider, generation_bits);
  SF_CHECK(seal_limit <= kPacketNumberEnd);
}

bool PathSealer::seal(Bytes aad, std::span<const Bytes> parts, MutableBytes out) {
  if (next_ >= seal_limit_) [[unlikely]]
    return false;
  // PROTOCOL.md §2: a packet number is burnt when taken.
  const PacketNumber number = next_++;
  if (number >> generation_bits_ != generation_) [[unlikely]] {
    key_ = key_.next();
    ++generation_;
  }
  AeadKey& key = key_.key(*provider_);
  key.seal(Nonce(key_.iv(), path_, number).view(), aad, parts, out);
  return true;
}

const char* open_status_name(OpenStatus status) {
  switch (status) {
    case OpenStatus::kOk: return "ok";
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
                       unsigned generation_bits)
    : provider_(&provider),
      path_(path),
      generation_bits_(generation_bits),
      current_(std::move(path_secret)) {
  check_arguments(provider, generation_bits);
}

OpenStatus PathOpener::open(PacketNumber number, Bytes aad, Bytes sealed, MutableBytes out) {
  const OpenStatus known = check(number);
  if (known != OpenStatus::kOk) return known;
  const uint64_t generation = number >> generation_bits_;
  GenerationKey& keys = key_of(generation);
  AeadKey& key = keys.key(*provider_);
  if (sealed.size() < kAuthTagBytes ||
      !key.open(Nonce(keys.iv(), path_, number).view(), aad, sealed, out)) [[unlikely]] {
    ++auth_failures_;
    return OpenStatus::kAuthFailed;
  }
  if (generation > generation_) [[unlikely]]
    adopt_next();
  window_.commit(number);
  return OpenStatus::kOk;
}

OpenStatus PathOpener::check(PacketNumber number) const {
  if (number >= kPacketNumberEnd) return OpenStatus::kLimit;
  const uint64_t generation = number >> generation_bits_;
  if (generation > generation_ + 1) return OpenStatus::kFutureGeneration;
  if (generation + 1 < generation_) return OpenStatus::kStaleGeneration;
  switch (window_.check(number)) {
    case Seen::kNew: return OpenStatus::kOk;
    case Seen::kDuplicate: return OpenStatus::kReplayDuplicate;
    case Seen::kTooOld: return OpenStatus::kReplayTooOld;
  }
  return OpenStatus::kReplayTooOld;
}

GenerationKey& PathOpener::key_of(uint64_t generation) {
  if (generation == generation_) [[likely]]
    return current_;
  if (generation < generation_) return previous_;
  if (next_.empty()) next_ = current_.next();
  return next_;
}

void PathOpener::adopt_next() {
  previous_ = std::move(current_);
  current_ = std::move(next_);
  next_ = GenerationKey();
  ++generation_;
}

}  // namespace securefabric::crypto
