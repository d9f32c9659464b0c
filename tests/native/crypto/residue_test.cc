// What sealing and opening leave behind on the stack: nothing of a key, an iv or a secret.
//
// The code runs on a thread whose stack lies in memory of the test's own, which is searched
// afterwards. Where frames overwrite each other by luck a live rank's memory would show a residue
// only now and then (tests/test_secret_memory.py looks there); here every run shows it.
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "crypto/kernels.h"
#include "crypto/key_exchange.h"
#include "crypto/key_schedule.h"
#include "crypto/packet_key.h"

namespace securefabric::crypto {
namespace {

using base::Bytes;

constexpr size_t kStackBytes = 128 * 1024;
constexpr size_t kPieceBytes = 8;  // enough to tell a secret from chance
constexpr base::PathId kPath{0x0102};
constexpr unsigned kGenerationBits = 3;

bool is_zero(uint8_t byte) {
  return byte == 0;
}

class OwnStack {
 public:
  OwnStack()
      : memory_(static_cast<uint8_t*>(mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0))) {}
  ~OwnStack() { munmap(memory_, kStackBytes); }
  OwnStack(const OwnStack&) = delete;
  OwnStack& operator=(const OwnStack&) = delete;

  void run(std::function<void()> work) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    ASSERT_EQ(pthread_attr_setstack(&attributes, memory_, kStackBytes), 0);
    pthread_t thread;
    const auto call = [](void* function) -> void* {
      // The thread's own end writes over the frames near its start: go deeper first.
      std::array<uint8_t, 16 * 1024> room;
      asm volatile("" : : "r"(room.data()) : "memory");
      (*static_cast<std::function<void()>*>(function))();
      asm volatile("" : : "r"(room.data()) : "memory");
      return nullptr;
    };
    ASSERT_EQ(pthread_create(&thread, &attributes, call, &work), 0);
    pthread_join(thread, nullptr);
    pthread_attr_destroy(&attributes);
  }

  // Where pieces of the secret lie, zeros aside, aligned to 4 bytes as registers are stored; for
  // people.
  std::string found(Bytes secret) const {
    std::string places;
    for (size_t at = 0; at + kPieceBytes <= kStackBytes; at += 4) {
      if (std::ranges::all_of(Bytes(memory_ + at, kPieceBytes), is_zero)) continue;
      for (size_t piece = 0; piece + kPieceBytes <= secret.size(); piece += 4) {
        if (memory_[at] != secret[piece]) continue;
        if (std::memcmp(memory_ + at, secret.data() + piece, kPieceBytes) != 0) continue;
        places += " byte " + std::to_string(piece) + " at " + std::to_string(kStackBytes - at);
      }
    }
    return places;
  }

 private:
  uint8_t* const memory_;  // zeros at first
};

SecretBuffer secret_of(uint8_t first, size_t size) {
  SecretBuffer secret = SecretBuffer::allocate(size);
  uint8_t next = first;
  for (uint8_t& byte : secret.bytes()) byte = next = static_cast<uint8_t>(next * 5 + 77);
  return secret;
}

SecretBuffer copy_of(const SecretBuffer& secret) {
  SecretBuffer copy = SecretBuffer::allocate(secret.size());
  std::ranges::copy(secret.view(), copy.bytes().begin());
  return copy;
}

// Everything that follows from a path's secret for a packet, in one buffer.
SecretBuffer secrets_of(const AeadProvider& provider, const SecretBuffer& path_secret,
                        base::PacketNumber number, Bytes aad) {
  const uint64_t generation = number >> kGenerationBits;
  const PacketKey key = derive_packet_key(path_secret.view(), generation, provider.key_bytes(),
                                          provider.nonce_bytes());
  SecretBuffer all = SecretBuffer::allocate(path_secret.size() + key.key.size() + key.iv.size() +
                                            std::max(sizeof(GcmSchedule), sizeof(AegisWork)));
  base::ByteWriter writer(all.bytes());
  writer.bytes(path_secret.view());
  writer.bytes(key.key.view());
  writer.bytes(key.iv.view());
  if (provider.suite() == Suite::kAes256Gcm && aesni_kernels() != nullptr) {
    SecretBuffer expanded = SecretBuffer::allocate(sizeof(GcmSchedule));
    aesni_kernels()->gcm_expand(*reinterpret_cast<GcmSchedule*>(expanded.bytes().data()),
                                key.key.view().data());
    writer.bytes(expanded.view());
  }
  if (provider.suite() == Suite::kAegis256x2 && aesni_kernels() != nullptr) {
    // With the state that a packet begins with, who has its header can open it.
    std::array<uint8_t, kAegisNonceBytes> nonce;
    make_nonce(key.iv.view(), kPath, number, nonce);
    AegisWork work{};
    aesni_kernels()->aegis_start(work, key.key.view().data(), nonce.data(), aad.data(), aad.size());
    writer.bytes(Bytes(&work.state[0][0], sizeof(work.state)));
  }
  return all;
}

// Puts the registers where found() sees them, as a signal or a function bound late would.
[[gnu::noinline]] void keep_registers() {
  alignas(64) std::array<uint8_t, 16 * 32 + 16 * 64> kept{};
#if defined(__x86_64__)
  if (CpuFeatures::detect().avx) {
#define SF_KEEP(number, at) "vmovdqu %%ymm" #number ", " #at "(%0)\n\t"
    asm volatile(SF_KEEP(0, 0) SF_KEEP(1, 32) SF_KEEP(2, 64) SF_KEEP(3, 96) SF_KEEP(4, 128)
                     SF_KEEP(5, 160) SF_KEEP(6, 192) SF_KEEP(7, 224) SF_KEEP(8, 256) SF_KEEP(9, 288)
                         SF_KEEP(10, 320) SF_KEEP(11, 352) SF_KEEP(12, 384) SF_KEEP(13, 416)
                             SF_KEEP(14, 448) SF_KEEP(15, 480)
                 :
                 : "r"(kept.data())
                 : "memory");
  }
  if (CpuFeatures::detect().avx512) {
#define SF_KEEP_HIGH(number, at) "vmovdqu64 %%zmm" #number ", " #at "(%0)\n\t"
    asm volatile(SF_KEEP_HIGH(16, 512) SF_KEEP_HIGH(17, 576) SF_KEEP_HIGH(18, 640) SF_KEEP_HIGH(
                     19, 704) SF_KEEP_HIGH(20, 768) SF_KEEP_HIGH(21, 832) SF_KEEP_HIGH(22, 896)
                     SF_KEEP_HIGH(23, 960) SF_KEEP_HIGH(24, 1024) SF_KEEP_HIGH(25, 1088)
                         SF_KEEP_HIGH(26, 1152) SF_KEEP_HIGH(27, 1216) SF_KEEP_HIGH(28, 1280)
                             SF_KEEP_HIGH(29, 1344) SF_KEEP_HIGH(30, 1408) SF_KEEP_HIGH(31, 1472)
                 :
                 : "r"(kept.data())
                 : "memory");
  }
#endif
  asm volatile("" : : "r"(kept.data()) : "memory");
}

class Residue : public testing::TestWithParam<const AeadProvider*> {};

// Each call on a fresh stack, so that no later one covers what it left.
TEST_P(Residue, sealing_and_opening__leave_no_secret_on_the_stack) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers keep in memory what the kernels that are shipped keep in registers";
#endif
  const AeadProvider& provider = *GetParam();
  const SecretBuffer path_secret = secret_of(1, 32);
  PathSealer sealer(provider, copy_of(path_secret), kPath, kGenerationBits);
  PathOpener opener(provider, copy_of(path_secret), kPath, kGenerationBits);
  const std::vector<uint8_t> aad(16, 1);
  const std::vector<uint8_t> plain(9000, 2);
  for (const size_t size : {0, 1, 16, 31, 32, 100, 128, 129, 1000, 1024, 4096, 8911, 9000}) {
    const Bytes whole = Bytes(plain).first(size);
    const std::array<Bytes, 2> parts = {whole.first(size / 3), whole.subspan(size / 3)};
    std::vector<uint8_t> sealed(size + kAuthTagBytes);
    std::vector<uint8_t> opened(size);
    const base::PacketNumber number = sealer.next_packet_number();
    const SecretBuffer secrets = secrets_of(provider, path_secret, number, aad);

    OwnStack sealing;
    sealing.run([&] {
      SF_CHECK(sealer.seal(aad, parts, sealed));
      keep_registers();
    });
    EXPECT_EQ(sealing.found(secrets.view()), "") << "after sealing " << size << " bytes";

    OwnStack opening;
    opening.run([&] {
      SF_CHECK(opener.open(0, number, aad, sealed, opened) == OpenStatus::kOk);
      keep_registers();
    });
    EXPECT_EQ(opening.found(secrets.view()), "") << "after opening " << size << " bytes";
    EXPECT_TRUE(std::ranges::equal(opened, whole));
  }
}

std::vector<const AeadProvider*> all_providers() {
  std::vector<const AeadProvider*> found;
  for (const Suite suite : all_suites()) {
    for (const AeadProvider* provider : candidate_providers(suite)) found.push_back(provider);
  }
  return found;
}

INSTANTIATE_TEST_SUITE_P(providers, Residue, testing::ValuesIn(all_providers()),
                         [](const auto& tested) {
                           std::string name = suite_name(tested.param->suite());
                           name += std::string("_") + tested.param->name();
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

// Alone, so that what comes after it covers nothing: a state may be wiped later by luck only.
TEST(Residue, aegis_start__leaves_no_state_on_the_stack) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers keep in memory what the kernels that are shipped keep in registers";
#endif
  const CpuFeatures cpu = CpuFeatures::detect();
  const SecretBuffer key = secret_of(11, kKernelKeyBytes);
  const SecretBuffer nonce = secret_of(12, kAegisNonceBytes);
  const std::vector<uint8_t> aad(40, 1);
  for (const PacketKernels* kernels :
       {cpu.aes && cpu.avx ? aesni_kernels() : nullptr, cpu.wide_aes ? vaes_kernels() : nullptr,
        cpu.avx512 ? avx512_kernels() : nullptr}) {
    if (kernels == nullptr) continue;
    for (const size_t aad_bytes : {0u, 5u, 16u, 32u, 40u}) {
      SCOPED_TRACE(std::string(kernels->name) + ", " + std::to_string(aad_bytes));
      AegisWork work{};
      OwnStack stack;
      stack.run([&] {
        kernels->aegis_start(work, key.view().data(), nonce.view().data(), aad.data(), aad_bytes);
      });
      EXPECT_EQ(stack.found(Bytes(&work.state[0][0], sizeof(work.state))), "") << "the state";
      EXPECT_EQ(stack.found(key.view()), "") << "the key";
      EXPECT_EQ(stack.found(nonce.view()), "") << "the nonce";
    }
  }
}

TEST(Residue, agreeing_on_a_link__leaves_no_secret_on_the_stack) {
  const SecretBuffer private_key = secret_of(3, kPrivateKeyBytes);
  const SecretBuffer job_secret = secret_of(4, 32);
  const KeyPair peer = KeyPair::from_private(secret_of(5, kPrivateKeyBytes));
  const std::vector<uint8_t> entry(300, 6);
  SecretBuffer link;
  SecretBuffer path;
  OwnStack stack;
  stack.run([&] {
    const KeyPair own = KeyPair::from_private(copy_of(private_key));
    link = derive_link_secret(own, peer.public_key(), entry, entry, true, 0, job_secret.view(), {})
               .value();
    path = derive_path_secret(
        derive_direction_secret(link.view(), base::Rank{0}, base::Rank{1}, 0).view(), kPath);
  });
  EXPECT_EQ(stack.found(private_key.view()), "") << "the X25519 key";
  EXPECT_EQ(stack.found(job_secret.view()), "") << "the job's secret";
  EXPECT_EQ(stack.found(link.view()), "") << "the link's secret";
  EXPECT_EQ(stack.found(path.view()), "") << "the path's secret";
}

TEST(Residue, found__sees_what_was_left) {
  const SecretBuffer secret = secret_of(9, 32);
  OwnStack stack;
  stack.run([&] {
    std::array<uint8_t, 32> left;
    std::ranges::copy(secret.view(), left.begin());
    asm volatile("" : : "r"(left.data()) : "memory");
  });
  EXPECT_NE(stack.found(secret.view()), "");
}

}  // namespace
}  // namespace securefabric::crypto
