// Memory for secrets: keys, ivs, shared secrets, job keys.
//
// Every secret the core holds lies in one process-wide arena of anonymous memory that is locked in
// RAM (where the memlock limit allows it), left out of core dumps, and wiped by the kernel in a
// forked child. A slot is wiped when its SecretBuffer dies, so a free slot always reads zero. The
// arena is the only process-wide mutable object of this room; all functions here may be called
// from any thread. A single SecretBuffer has one owner and no lock.
//
// The expanded keys of our own ciphers lie here as well. Not covered: those that OpenSSL keeps on
// its own heap (chacha20-poly1305, and AES-GCM where it is the fallback; wiped when freed, but
// neither locked nor wiped on fork), and copies that a caller makes. memfd_secret is not used
// because it gives shared memory, which the kernel cannot wipe on fork.
#pragma once

#include <cstddef>
#include <string>

#include "base/bytes.h"

namespace securefabric::crypto {

// The largest secret: a job key file's text fits with room to spare.
inline constexpr size_t kSecretBytesMax = 16 * 1024;

// Owns one slot of the arena. Cannot be copied, compared or printed.
class SecretBuffer {
 public:
  SecretBuffer() = default;  // empty: holds no slot
  SecretBuffer(SecretBuffer&& other) noexcept;
  SecretBuffer& operator=(SecretBuffer&& other) noexcept;
  SecretBuffer(const SecretBuffer&) = delete;
  SecretBuffer& operator=(const SecretBuffer&) = delete;
  ~SecretBuffer() { release(); }

  // All zeros. size <= kSecretBytesMax; throws std::bad_alloc when the system has no memory.
  static SecretBuffer allocate(size_t size);
  // Takes a secret over from memory that is not ours, and leaves zeros there.
  static SecretBuffer copy_and_wipe(base::MutableBytes source);

  base::MutableBytes bytes() { return {data_, size_}; }
  base::Bytes view() const { return {data_, size_}; }
  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }

 private:
  SecretBuffer(uint8_t* data, size_t size) : data_(data), size_(size) {}
  void release() noexcept;

  uint8_t* data_ = nullptr;  // a slot of the arena, or null when size_ is 0
  size_t size_ = 0;          // bytes in use; the slot is the next size class up
};

// Clears the vector registers (x86 with AVX) at the end of its life: the first variable of a
// function that computes with secrets. Whoever saves registers on the stack would keep what was
// left in them: a signal, or a function that is bound at its first call. Those above 15, which
// AVX-512 has and copies use, are hardly ever written by other code, and would show it for long.
class RegisterScrubber {
 public:
  RegisterScrubber() = default;
  ~RegisterScrubber();
  RegisterScrubber(const RegisterScrubber&) = delete;
  RegisterScrubber& operator=(const RegisterScrubber&) = delete;
};

// True in a child forked from a process that held secrets: the canary word, which shares the
// arena's fate, reads zero. It stays true for the child's life. One load: cheap enough to ask
// before every packet. A fork that copies the address space without running fork handlers (raw
// clone) is seen as well, unless the kernel lacks MADV_WIPEONFORK (secret_memory_status says so).
bool forked_child();

// One line for people: how much memory the arena has, and which protections it got.
std::string secret_memory_status();

}  // namespace securefabric::crypto
