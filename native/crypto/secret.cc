#include "crypto/secret.h"

#include <openssl/crypto.h>
#include <pthread.h>
#include <sys/mman.h>

#include <array>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "base/check.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace securefabric::crypto {
namespace {

#if defined(__x86_64__)
[[gnu::target("avx")]] void clear_low_registers() {
  _mm256_zeroall();
}

[[gnu::target("avx512f")]] void clear_high_registers() {
  asm volatile(
      "vpxorq %%zmm16, %%zmm16, %%zmm16\n\tvpxorq %%zmm17, %%zmm17, %%zmm17\n\t"
      "vpxorq %%zmm18, %%zmm18, %%zmm18\n\tvpxorq %%zmm19, %%zmm19, %%zmm19\n\t"
      "vpxorq %%zmm20, %%zmm20, %%zmm20\n\tvpxorq %%zmm21, %%zmm21, %%zmm21\n\t"
      "vpxorq %%zmm22, %%zmm22, %%zmm22\n\tvpxorq %%zmm23, %%zmm23, %%zmm23\n\t"
      "vpxorq %%zmm24, %%zmm24, %%zmm24\n\tvpxorq %%zmm25, %%zmm25, %%zmm25\n\t"
      "vpxorq %%zmm26, %%zmm26, %%zmm26\n\tvpxorq %%zmm27, %%zmm27, %%zmm27\n\t"
      "vpxorq %%zmm28, %%zmm28, %%zmm28\n\tvpxorq %%zmm29, %%zmm29, %%zmm29\n\t"
      "vpxorq %%zmm30, %%zmm30, %%zmm30\n\tvpxorq %%zmm31, %%zmm31, %%zmm31"
      :
      :
      : "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25",
        "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31");
}
#endif

// Blocks are whole pages on every page size up to 64 KiB, and small against the usual 8 MiB
// memlock limit: a block holds 1,024 keys.
constexpr size_t kBlockBytes = 64 * 1024;
constexpr size_t kSlotBytesMin = 64;  // one cache line, so that two secrets never share one
constexpr size_t kSizeClasses = 9;    // 64 B, 128 B, ... 16 KiB
static_assert(kSlotBytesMin << (kSizeClasses - 1) == kSecretBytesMax);
static_assert(kBlockBytes % kSecretBytesMax == 0);

constexpr uint64_t kCanaryAlive = 0x5EC2E7FAB21C0001u;  // anything but zero

size_t size_class_of(size_t size) {
  const size_t slots = (size + kSlotBytesMin - 1) / kSlotBytesMin;
  return static_cast<size_t>(std::bit_width(slots - 1));
}

// What the kernel gave the blocks; zero means that it never refused.
struct Protections {
  size_t bytes_mapped = 0;     // of all blocks
  size_t bytes_locked = 0;     // of the blocks that mlock accepted
  int lock_errno = 0;          // of the first refused mlock
  int dont_dump_errno = 0;     // of the first refused MADV_DONTDUMP
  int wipe_on_fork_errno = 0;  // of the first refused MADV_WIPEONFORK
};

// Slots of one size class are cut from blocks of their own; free slots wait in a list that lies
// outside the arena, so that a wiped child still has a consistent allocator. Blocks are never
// returned: the arena is as large as the most secrets ever held at once.
class Arena {
 public:
  // Created with the first secret, and never destroyed: secrets may outlive any static.
  static Arena& instance() {
    static Arena* const arena = new Arena;
    return *arena;
  }
  // Null until the first secret exists; asking creates nothing.
  static Arena* existing() { return existing_.load(std::memory_order_acquire); }

  uint8_t* take(size_t size_class) {
    const std::lock_guard lock(mutex_);
    return take_locked(size_class);
  }

  void give_back(uint8_t* slot, size_t size_class) noexcept {
    OPENSSL_cleanse(slot, kSlotBytesMin << size_class);
    const std::lock_guard lock(mutex_);
    free_[size_class].push_back(slot);  // map_block reserved the room: cannot throw
  }

  bool is_wiped() const { return __atomic_load_n(canary_, __ATOMIC_RELAXED) == 0; }

  Protections protections() {
    const std::lock_guard lock(mutex_);
    return protections_;
  }

 private:
  Arena() {
    canary_ = new (take_locked(0)) uint64_t(kCanaryAlive);
    existing_.store(this, std::memory_order_release);
    // Holding the lock across fork() leaves the child a usable allocator whatever other threads
    // did.
    const int error =
        pthread_atfork([] { existing()->mutex_.lock(); }, [] { existing()->mutex_.unlock(); },
                       [] { existing()->after_fork_in_child(); });
    SF_CHECK(error == 0);
  }

  void after_fork_in_child() {
    // The kernel has wiped the blocks already; a kernel that cannot is helped out here.
    if (protections_.wipe_on_fork_errno != 0) {
      for (uint8_t* block : blocks_) OPENSSL_cleanse(block, kBlockBytes);
    }
    protections_.bytes_locked = 0;  // memory locks are not inherited
    mutex_.unlock();
  }

  // Only while holding mutex_ (or in the constructor).
  uint8_t* take_locked(size_t size_class) {
    if (free_[size_class].empty()) map_block(size_class);
    uint8_t* const slot = free_[size_class].back();
    free_[size_class].pop_back();
    return slot;
  }

  // Only while holding mutex_ (or in the constructor).
  void map_block(size_t size_class) {
    const size_t slot_bytes = kSlotBytesMin << size_class;
    const size_t slots = kBlockBytes / slot_bytes;
    slots_cut_[size_class] += slots;
    free_[size_class].reserve(slots_cut_[size_class]);
    blocks_.reserve(blocks_.size() + 1);
    void* const memory =
        mmap(nullptr, kBlockBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
      slots_cut_[size_class] -= slots;
      throw std::bad_alloc();
    }
    protect(memory);
    uint8_t* const block = static_cast<uint8_t*>(memory);
    blocks_.push_back(block);
    for (size_t i = slots; i > 0; --i) free_[size_class].push_back(block + (i - 1) * slot_bytes);
  }

  void protect(void* block) {
    const auto keep_first = [](int& kept) { kept = kept == 0 ? errno : kept; };
    protections_.bytes_mapped += kBlockBytes;
    if (mlock(block, kBlockBytes) == 0) {
      protections_.bytes_locked += kBlockBytes;
    } else {
      keep_first(protections_.lock_errno);
    }
    if (madvise(block, kBlockBytes, MADV_DONTDUMP) != 0) keep_first(protections_.dont_dump_errno);
    if (madvise(block, kBlockBytes, MADV_WIPEONFORK) != 0) {
      keep_first(protections_.wipe_on_fork_errno);
    }
  }

  static inline std::atomic<Arena*> existing_{nullptr};  // set once, by the constructor

  std::mutex mutex_;                                      // guards all that follows
  std::array<std::vector<uint8_t*>, kSizeClasses> free_;  // wiped slots, last given back first
  std::array<size_t, kSizeClasses> slots_cut_{};          // slots that exist, free or not
  std::vector<uint8_t*> blocks_;                          // every mapping, kBlockBytes each
  Protections protections_;                               // what the blocks got
  uint64_t* canary_ = nullptr;  // in the arena; kCanaryAlive until a fork wipes it; no lock needed
};

std::string refusal(int error) {
  return std::string(" (") + std::strerror(error) + ")";
}

}  // namespace

SecretBuffer::SecretBuffer(SecretBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

SecretBuffer& SecretBuffer::operator=(SecretBuffer&& other) noexcept {
  if (this != &other) {
    release();
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
  }
  return *this;
}

SecretBuffer SecretBuffer::allocate(size_t size) {
  SF_CHECK_MSG(size <= kSecretBytesMax, std::to_string(size));
  if (size == 0) return {};
  return {Arena::instance().take(size_class_of(size)), size};
}

SecretBuffer SecretBuffer::copy_and_wipe(base::MutableBytes source) {
  SecretBuffer copy = allocate(source.size());
  if (!source.empty()) {
    std::memcpy(copy.data_, source.data(), source.size());
    OPENSSL_cleanse(source.data(), source.size());
  }
  return copy;
}

void SecretBuffer::release() noexcept {
  if (data_ == nullptr) return;
  Arena::instance().give_back(data_, size_class_of(size_));
  data_ = nullptr;
  size_ = 0;
}

RegisterScrubber::~RegisterScrubber() {
#if defined(__x86_64__)
  static const bool has_avx = __builtin_cpu_supports("avx") != 0;
  static const bool has_avx512 = __builtin_cpu_supports("avx512f") != 0;
  if (has_avx) clear_low_registers();
  if (has_avx512) clear_high_registers();
#endif
}

bool forked_child() {
  const Arena* const arena = Arena::existing();
  return arena != nullptr && arena->is_wiped();
}

std::string secret_memory_status() {
  Arena* const arena = Arena::existing();
  if (arena == nullptr) return "no secret held yet";
  const Protections got = arena->protections();
  std::string text = std::to_string(got.bytes_mapped / 1024) + " KiB: ";
  if (got.bytes_locked == got.bytes_mapped) {
    text += "locked in RAM";
  } else {
    text += std::to_string(got.bytes_locked / 1024) + " KiB locked in RAM";
    if (got.lock_errno != 0) text += refusal(got.lock_errno) + "; raise `ulimit -l`";
  }
  text += got.dont_dump_errno == 0 ? ", left out of core dumps"
                                   : ", in core dumps" + refusal(got.dont_dump_errno);
  text += got.wipe_on_fork_errno == 0
              ? ", wiped on fork"
              : ", wiped on fork by a handler only" + refusal(got.wipe_on_fork_errno);
  return text;
}

}  // namespace securefabric::crypto
