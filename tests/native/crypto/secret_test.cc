#include "crypto/secret.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/random.h"
#include "crypto/test_bytes.h"

namespace securefabric::crypto {
namespace {

static_assert(!std::is_copy_constructible_v<SecretBuffer>);
static_assert(!std::is_copy_assignable_v<SecretBuffer>);
static_assert(std::is_nothrow_move_constructible_v<SecretBuffer>);

bool is_zero(base::Bytes bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](uint8_t byte) { return byte == 0; });
}

void fill(SecretBuffer& secret, uint8_t value) {
  std::fill(secret.bytes().begin(), secret.bytes().end(), value);
}

// Runs `body` in a forked child and returns its exit status.
template <typename Body>
int run_in_fork(Body&& body) {
  const pid_t child = fork();
  if (child == 0) _exit(body());
  int status = -1;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// The flags that the kernel shows for the mapping that holds `address`; empty where it shows none.
std::string mapping_flags(const void* address) {
  std::ifstream smaps("/proc/self/smaps");
  const auto target = reinterpret_cast<uintptr_t>(address);
  bool inside = false;
  for (std::string line; std::getline(smaps, line);) {
    uintptr_t begin = 0;
    uintptr_t end = 0;
    char dash = 0;
    std::istringstream words(line);
    if (words >> std::hex >> begin >> dash >> end && dash == '-') {
      inside = begin <= target && target < end;
    } else if (inside && line.starts_with("VmFlags:")) {
      return line + " ";
    }
  }
  return "";
}

TEST(SecretBuffer, allocate__gives_zeros_of_the_asked_size) {
  for (const size_t size : {1u, 32u, 64u, 65u, 4096u, 16384u}) {
    const SecretBuffer secret = SecretBuffer::allocate(size);
    EXPECT_EQ(secret.size(), size);
    EXPECT_TRUE(is_zero(secret.view()));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(secret.view().data()) % 64, 0u);
  }
  EXPECT_TRUE(SecretBuffer::allocate(0).empty());
  EXPECT_DEATH(SecretBuffer::allocate(kSecretBytesMax + 1), "broken invariant");
}

TEST(SecretBuffer, allocate__never_hands_out_memory_twice) {
  base::Random random(1);
  std::vector<std::pair<SecretBuffer, uint8_t>> held;
  for (int step = 0; step < 20'000; ++step) {
    if (held.size() < 500 && random.chance(0.6)) {
      const auto mark = static_cast<uint8_t>(1 + random.below(255));
      held.emplace_back(SecretBuffer::allocate(1 + random.below(300)), mark);
      ASSERT_TRUE(is_zero(held.back().first.view()));
      fill(held.back().first, mark);
    } else if (!held.empty()) {
      std::swap(held[random.below(held.size())], held.back());
      for (const uint8_t byte : held.back().first.view()) ASSERT_EQ(byte, held.back().second);
      held.pop_back();
    }
  }
}

TEST(SecretBuffer, allocate__serves_many_threads) {
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (uint8_t mark = 1; mark <= 4; ++mark) {
    threads.emplace_back([mark, &wrong] {
      for (int i = 0; i < 2'000; ++i) {
        SecretBuffer secret = SecretBuffer::allocate(32 + static_cast<size_t>(i) % 200);
        if (!is_zero(secret.view())) ++wrong;
        fill(secret, mark);
        for (const uint8_t byte : secret.view()) wrong += byte != mark;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(SecretBuffer, copy_and_wipe__moves_the_secret) {
  ByteVector source = from_text("a secret of some length");
  const SecretBuffer secret = SecretBuffer::copy_and_wipe(source);
  EXPECT_EQ(base::to_text(secret.view()), "a secret of some length");
  EXPECT_TRUE(is_zero(source));
  EXPECT_TRUE(SecretBuffer::copy_and_wipe({}).empty());
}

TEST(SecretBuffer, move__leaves_an_empty_buffer) {
  SecretBuffer first = to_secret(from_text("first"));
  SecretBuffer second = std::move(first);
  EXPECT_EQ(base::to_text(second.view()), "first");
  EXPECT_TRUE(first.empty());  // NOLINT: what a moved-from buffer holds is part of its contract
  EXPECT_EQ(first.view().data(), nullptr);
}

TEST(SecretBuffer, release__wipes_the_slot) {
  const uint8_t* slot = nullptr;
  {
    SecretBuffer secret = SecretBuffer::allocate(100);
    fill(secret, 0xA5);
    slot = secret.view().data();
  }
  EXPECT_TRUE(is_zero({slot, 100}));  // the arena never unmaps: still readable
}

TEST(SecretBuffer, move_assignment__wipes_what_was_held) {
  SecretBuffer target = to_secret(ByteVector(100, 0xA5));
  const uint8_t* const slot = target.view().data();
  target = to_secret(ByteVector(50, 0x5A));
  EXPECT_TRUE(is_zero({slot, 100}));
  EXPECT_EQ(target.view()[49], 0x5A);
  SecretBuffer& same = target;
  target = std::move(same);
  EXPECT_EQ(target.view()[49], 0x5A);
}

TEST(SecretBuffer, memory__is_left_out_of_dumps_and_wiped_on_fork) {
  const SecretBuffer secret = SecretBuffer::allocate(32);
  const std::string flags = mapping_flags(secret.view().data());
  if (flags.empty()) GTEST_SKIP() << "this kernel shows no VmFlags in /proc/self/smaps";
  EXPECT_NE(flags.find(" dd "), std::string::npos) << flags;
  EXPECT_NE(flags.find(" wf "), std::string::npos) << flags;
}

TEST(SecretMemoryStatus, text__names_each_protection) {
  const SecretBuffer secret = SecretBuffer::allocate(32);
  const std::string text = secret_memory_status();
  EXPECT_NE(text.find("KiB"), std::string::npos) << text;
  EXPECT_NE(text.find("locked in RAM"), std::string::npos) << text;
  EXPECT_NE(text.find("core dumps"), std::string::npos) << text;
  EXPECT_NE(text.find("wiped on fork"), std::string::npos) << text;
}

TEST(ForkedChild, parent__is_none) {
  const SecretBuffer secret = SecretBuffer::allocate(32);
  EXPECT_FALSE(forked_child());
}

TEST(ForkedChild, child__sees_the_canary_and_zeros) {
  SecretBuffer secret = SecretBuffer::allocate(32);
  fill(secret, 0xA5);
  const int status = run_in_fork([&secret] {
    if (!forked_child()) return 1;
    if (!is_zero(secret.view())) return 2;
    if (secret_memory_status().find(" 0 KiB locked") == std::string::npos) return 3;
    return 0;
  });
  EXPECT_EQ(status, 0);
  EXPECT_FALSE(forked_child());
  EXPECT_EQ(secret.view()[31], 0xA5);
}

TEST(ForkedChild, child__can_still_allocate_and_release) {
  SecretBuffer secret = to_secret(ByteVector(32, 0xA5));
  const int status = run_in_fork([&secret] {
    secret = SecretBuffer();  // gives the parent's slot back to the child's copy of the arena
    for (int i = 0; i < 3'000; ++i) {
      SecretBuffer fresh = SecretBuffer::allocate(32);
      if (!is_zero(fresh.view())) return 1;
      fill(fresh, 1);
    }
    return forked_child() ? 0 : 2;
  });
  EXPECT_EQ(status, 0);
  EXPECT_EQ(secret.view()[0], 0xA5);
}

TEST(ForkedChild, fork__during_allocation_in_another_thread_does_not_hang) {
  std::atomic<bool> stop = false;
  std::thread busy([&stop] {
    while (!stop) SecretBuffer::allocate(32);
  });
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(run_in_fork([] { return SecretBuffer::allocate(32).size() == 32 ? 0 : 1; }), 0);
  }
  stop = true;
  busy.join();
}

}  // namespace
}  // namespace securefabric::crypto
