#include "crypto/aead_fused.h"

#include <openssl/crypto.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "base/check.h"
#include "crypto/secret.h"

namespace securefabric::crypto {
namespace {

using base::Bytes;
using base::MutableBytes;

constexpr uint64_t kGcmBytesMax = (uint64_t{1} << 36) - 32;  // the block counter has 32 bits

// Cuts parts into runs of whole groups, in place where a part holds some, through a small buffer
// where a group lies across a seam. So only the bytes around seams move twice. What is left at the
// end, less than a group, is the tail.
template <size_t kGroup>
class Gatherer {
 public:
  // seal(in, groups, fetch_end) is called for each run, in order.
  template <typename Seal>
  void add(Bytes part, size_t following, Seal&& seal) {
    const uint8_t* const fetch_end = part.data() + part.size() + following;
    if (held_ > 0) {
      const size_t taken = std::min(part.size(), kGroup - held_);
      copy(part.first(taken));
      part = part.subspan(taken);
      if (held_ < kGroup) return;
      seal(buffer_.data(), size_t{1}, buffer_.data() + kGroup);
      held_ = 0;
    }
    const size_t groups = part.size() / kGroup;
    if (groups > 0) seal(part.data(), groups, fetch_end);
    copy(part.subspan(groups * kGroup));
  }

  // The tail, with zeros behind it up to a whole group.
  uint8_t* padded_tail() {
    std::fill(buffer_.begin() + held_, buffer_.end(), uint8_t{0});
    return buffer_.data();
  }
  size_t tail_bytes() const { return held_; }

 private:
  void copy(Bytes bytes) {
    if (!bytes.empty()) std::memcpy(buffer_.data() + held_, bytes.data(), bytes.size());
    held_ += bytes.size();
  }

  alignas(64) std::array<uint8_t, kGroup> buffer_;  // the first held_ bytes count
  size_t held_ = 0;                                 // below kGroup between calls
};

void check_sealed_size(std::span<const Bytes> parts, size_t out_bytes) {
  size_t bytes = kAuthTagBytes;
  for (const Bytes part : parts) bytes += part.size();
  SF_CHECK_MSG(bytes == out_bytes, std::to_string(bytes));
}

bool is_genuine(const std::array<uint8_t, kAuthTagBytes>& tag, Bytes sealed, MutableBytes out) {
  if (CRYPTO_memcmp(tag.data(), sealed.last(kAuthTagBytes).data(), kAuthTagBytes) == 0) return true;
  if (!out.empty()) OPENSSL_cleanse(out.data(), out.size());
  return false;
}

class GcmKey final : public AeadKey {
 public:
  GcmKey(const PacketKernels& kernels, Bytes key)
      : kernels_(kernels), memory_(SecretBuffer::allocate(sizeof(GcmSchedule))) {
    kernels_.gcm_expand(schedule(), key.data());
  }

  void seal(Bytes nonce, Bytes aad, std::span<const Bytes> parts, MutableBytes out,
            size_t following) override {
    check_sealed_size(parts, out.size());
    Work work(*this, nonce, aad, out.size());
    uint8_t* to = out.data();
    Gatherer<kGcmGroupBytes> gatherer;
    for (const Bytes& part : parts) {
      const size_t behind = &part == &parts.back() ? following : 0;
      gatherer.add(part, behind, [&](const uint8_t* in, size_t groups, const uint8_t* fetch_end) {
        kernels_.gcm_seal(schedule(), work, in, to, groups, fetch_end);
        to += groups * kGcmGroupBytes;
      });
    }
    const size_t tail_bytes = gatherer.tail_bytes();
    uint8_t* const tail = gatherer.padded_tail();
    kernels_.gcm_seal_finish(schedule(), work, tail, tail_bytes, to, to + tail_bytes);
    std::memcpy(to, tail, tail_bytes);
  }

  bool open(Bytes nonce, Bytes aad, Bytes sealed, MutableBytes out) override {
    SF_CHECK(sealed.size() >= kAuthTagBytes && out.size() == sealed.size() - kAuthTagBytes);
    Work work(*this, nonce, aad, sealed.size());
    const size_t groups = out.size() / kGcmGroupBytes;
    const size_t whole = groups * kGcmGroupBytes;
    const size_t tail_bytes = out.size() - whole;
    kernels_.gcm_open(schedule(), work, sealed.data(), out.data(), groups);
    alignas(64) std::array<uint8_t, kGcmGroupBytes> tail;
    std::memcpy(tail.data(), sealed.data() + whole, tail_bytes);
    std::fill(tail.begin() + tail_bytes, tail.end(), uint8_t{0});
    std::array<uint8_t, kAuthTagBytes> tag;
    kernels_.gcm_open_finish(schedule(), work, tail.data(), tail_bytes, tag.data());
    if (tail_bytes > 0) std::memcpy(out.data() + whole, tail.data(), tail_bytes);
    return is_genuine(tag, sealed, out);
  }

 private:
  // Started for one packet, and wiped after it: its tag mask and the tag together tell the hash,
  // and that with the packet tells the hash's key.
  struct Work : GcmWork {
    Work(GcmKey& key, Bytes nonce, Bytes aad, size_t bytes) {
      SF_CHECK(nonce.size() == kGcmNonceBytes && bytes <= kGcmBytesMax);
      key.kernels_.gcm_start(key.schedule(), *this, nonce.data(), aad.data(), aad.size());
    }
    ~Work() { OPENSSL_cleanse(static_cast<GcmWork*>(this), sizeof(GcmWork)); }
    Work(const Work&) = delete;
    Work& operator=(const Work&) = delete;
  };

  GcmSchedule& schedule() { return *reinterpret_cast<GcmSchedule*>(memory_.bytes().data()); }

  const PacketKernels& kernels_;  // of this CPU
  SecretBuffer memory_;           // a GcmSchedule: plain bytes, written by gcm_expand
};

class AegisKey final : public AeadKey {
 public:
  AegisKey(const PacketKernels& kernels, Bytes key)
      : kernels_(kernels), key_(SecretBuffer::allocate(kKernelKeyBytes)) {
    std::copy(key.begin(), key.end(), key_.bytes().begin());
  }

  void seal(Bytes nonce, Bytes aad, std::span<const Bytes> parts, MutableBytes out,
            size_t following) override {
    check_sealed_size(parts, out.size());
    Work work(*this, nonce, aad);
    uint8_t* to = out.data();
    Gatherer<kAegisGroupBytes> gatherer;
    for (const Bytes& part : parts) {
      const size_t behind = &part == &parts.back() ? following : 0;
      gatherer.add(part, behind, [&](const uint8_t* in, size_t groups, const uint8_t* fetch_end) {
        kernels_.aegis_seal(work, in, to, groups, fetch_end);
        to += groups * kAegisGroupBytes;
      });
    }
    const size_t tail_bytes = gatherer.tail_bytes();
    uint8_t* const tail = gatherer.padded_tail();
    kernels_.aegis_seal_finish(work, tail, tail_bytes, to + tail_bytes);
    std::memcpy(to, tail, tail_bytes);
  }

  bool open(Bytes nonce, Bytes aad, Bytes sealed, MutableBytes out) override {
    SF_CHECK(sealed.size() >= kAuthTagBytes && out.size() == sealed.size() - kAuthTagBytes);
    Work work(*this, nonce, aad);
    const size_t groups = out.size() / kAegisGroupBytes;
    const size_t whole = groups * kAegisGroupBytes;
    const size_t tail_bytes = out.size() - whole;
    kernels_.aegis_open(work, sealed.data(), out.data(), groups);
    alignas(64) std::array<uint8_t, kAegisGroupBytes> tail{};
    std::memcpy(tail.data(), sealed.data() + whole, tail_bytes);
    std::array<uint8_t, kAuthTagBytes> tag;
    kernels_.aegis_open_finish(work, tail.data(), tail_bytes, tag.data());
    if (tail_bytes > 0) std::memcpy(out.data() + whole, tail.data(), tail_bytes);
    return is_genuine(tag, sealed, out);
  }

 private:
  // Started for one packet, and wiped after it.
  struct Work : AegisWork {
    Work(const AegisKey& key, Bytes nonce, Bytes aad) {
      SF_CHECK(nonce.size() == kAegisNonceBytes);
      key.kernels_.aegis_start(*this, key.key_.view().data(), nonce.data(), aad.data(), aad.size());
    }
    ~Work() { OPENSSL_cleanse(state, sizeof(state)); }
    Work(const Work&) = delete;
    Work& operator=(const Work&) = delete;
  };

  const PacketKernels& kernels_;  // of this CPU
  SecretBuffer key_;              // as the suite takes it
};

class GcmProvider final : public AeadProvider {
 public:
  explicit GcmProvider(const PacketKernels& kernels)
      : AeadProvider(Suite::kAes256Gcm, kernels.name), kernels_(kernels) {}
  std::unique_ptr<AeadKey> make_key(Bytes key) const override {
    SF_CHECK_MSG(key.size() == key_bytes(), std::to_string(key.size()));
    return std::make_unique<GcmKey>(kernels_, key);
  }

 private:
  const PacketKernels& kernels_;  // of one kind of CPU
};

class AegisProvider final : public AeadProvider {
 public:
  explicit AegisProvider(const PacketKernels& kernels)
      : AeadProvider(Suite::kAegis256x2, kernels.name), kernels_(kernels) {}
  std::unique_ptr<AeadKey> make_key(Bytes key) const override {
    SF_CHECK_MSG(key.size() == key_bytes(), std::to_string(key.size()));
    return std::make_unique<AegisKey>(kernels_, key);
  }

 private:
  const PacketKernels& kernels_;  // of one kind of CPU
};

// The one provider of `suite` on the kernels that Kernels() returns; null where there are none.
template <const PacketKernels* (*Kernels)()>
const AeadProvider* provider_on(Suite suite) {
  const PacketKernels* kernels = Kernels();
  if (kernels == nullptr) return nullptr;
  // Never destroyed: threads may still seal while the process ends.
  static const auto* const gcm = new GcmProvider(*kernels);
  static const auto* const aegis = new AegisProvider(*kernels);
  if (suite == Suite::kAes256Gcm) return gcm;
  if (suite == Suite::kAegis256x2) return aegis;
  return nullptr;
}

}  // namespace

std::vector<const AeadProvider*> fused_providers(Suite suite, CpuFeatures cpu) {
  std::vector<const AeadProvider*> providers;
  if (cpu.avx512) providers.push_back(provider_on<avx512_kernels>(suite));
  if (cpu.wide_aes) providers.push_back(provider_on<vaes_kernels>(suite));
  if (cpu.aes && cpu.carryless_multiply && cpu.avx) {
    providers.push_back(provider_on<aesni_kernels>(suite));
  }
  std::erase(providers, nullptr);
  return providers;
}

}  // namespace securefabric::crypto
