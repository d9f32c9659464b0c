// Lets the kernels for VAES and VPCLMULQDQ run on x86 CPUs without them, for tests.
//
// Such a CPU stops at each 256-bit vaesenc, vaesenclast and vpclmulqdq with SIGILL. The handler
// here decodes that one instruction, does it in two halves with the 128-bit instructions that the
// CPU has, writes the result into the interrupted registers and goes on behind it. All else,
// AVX2 included, is the machine's own: what is tested is the very code that ships, and only the
// meaning of three instructions is ours (Intel SDM volume 2: each does the same to both halves).
#pragma once

#if defined(__x86_64__)

#include <immintrin.h>
#include <signal.h>
#include <ucontext.h>

#include <array>
#include <bit>
#include <cstring>

#include "base/check.h"
#include "crypto/aead.h"

namespace securefabric::crypto {

class WideEmulator {
 public:
  // Whether the CPU has all but the wide instructions.
  static bool is_possible() {
    const CpuFeatures cpu = CpuFeatures::detect();
    return cpu.aes && cpu.carryless_multiply && __builtin_cpu_supports("avx2") != 0;
  }

  WideEmulator() {
    struct sigaction action = {};
    action.sa_sigaction = &WideEmulator::on_illegal_instruction;
    action.sa_flags = SA_SIGINFO;
    SF_CHECK(sigaction(SIGILL, &action, &before_) == 0);
  }
  ~WideEmulator() { sigaction(SIGILL, &before_, nullptr); }
  WideEmulator(const WideEmulator&) = delete;
  WideEmulator& operator=(const WideEmulator&) = delete;

  static uint64_t emulated() { return emulated_; }

 private:
  // Of the XSAVE area in a signal frame, standard form (Intel SDM volume 1, 13.4).
  static constexpr size_t kLowHalves = 160;
  static constexpr size_t kMagic = 464;
  static constexpr size_t kInUse = 512;
  static constexpr size_t kHighHalves = 576;

  // The registers of the interrupted code.
  class Frame {
   public:
    explicit Frame(void* context) : context_(static_cast<ucontext_t*>(context)) {
      uint32_t magic = 0;
      std::memcpy(&magic, area() + kMagic, sizeof(magic));
      SF_CHECK(magic == 0x46505853);  // the frame has the high halves
      uint64_t in_use = 0;
      std::memcpy(&in_use, area() + kInUse, sizeof(in_use));
      if ((in_use & 4) == 0) std::memset(area() + kHighHalves, 0, 256);
      in_use |= 6;
      std::memcpy(area() + kInUse, &in_use, sizeof(in_use));
    }

    uint8_t* half(size_t number, size_t which) {
      return area() + (which == 0 ? kLowHalves : kHighHalves) + 16 * number;
    }
    uint64_t general(size_t number) const {
      static constexpr int kOrder[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                         REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                         REG_R12, REG_R13, REG_R14, REG_R15};
      return static_cast<uint64_t>(context_->uc_mcontext.gregs[kOrder[number]]);
    }
    const uint8_t* instruction() const {
      return std::bit_cast<const uint8_t*>(context_->uc_mcontext.gregs[REG_RIP]);
    }
    void go_on_at(const uint8_t* next) {
      context_->uc_mcontext.gregs[REG_RIP] = std::bit_cast<greg_t>(next);
    }

   private:
    uint8_t* area() const { return reinterpret_cast<uint8_t*>(context_->uc_mcontext.fpregs); }
    ucontext_t* context_;  // the kernel's
  };

  // One VEX instruction with three operands, decoded (Intel SDM volume 2, 2.3 and 2.1.5).
  struct Instruction {
    unsigned operation = 0;           // map, then opcode: 0x2DC, 0x2DD, 0x344
    size_t out = 0;                   // register numbers
    size_t first = 0;                 //
    size_t second = 0;                // if `memory` is null
    const uint8_t* memory = nullptr;  // the second operand, 32 bytes
    uint8_t words = 0;                // vpclmulqdq: which halves
    const uint8_t* end = nullptr;     // where the next one begins
  };

  static bool decode(const Frame& frame, Instruction& made) {
    const uint8_t* const code = frame.instruction();
    const bool is_wide_vex = code[0] == 0xC4 && (code[2] & 0x07) == 0x05;  // 256 bits, prefix 66
    made.operation = static_cast<unsigned>(code[1] & 0x1F) << 8 | code[3];
    const bool is_product = made.operation == 0x344;
    if (!is_wide_vex || (made.operation != 0x2DC && made.operation != 0x2DD && !is_product)) {
      return false;
    }
    const auto extra = [&](unsigned bit) -> size_t { return (code[1] & bit) == 0 ? 8 : 0; };
    const uint8_t modrm = code[4];
    const unsigned mode = modrm >> 6;
    made.out = (modrm >> 3 & 7) | extra(0x80);
    made.first = ~(code[2] >> 3) & 15;
    made.second = (modrm & 7) | extra(0x20);
    const uint8_t* at = code + 5;
    uint64_t address = 0;
    bool is_relative = false;
    bool has_base = mode != 3;
    if (mode != 3 && (modrm & 7) == 4) {
      const uint8_t sib = *at++;
      const size_t index = (sib >> 3 & 7) | extra(0x40);
      if (index != 4) address += frame.general(index) << (sib >> 6);
      made.second = (sib & 7) | extra(0x20);
      has_base = (sib & 7) != 5 || mode != 0;
    } else if (mode == 0 && (modrm & 7) == 5) {
      is_relative = true;
      has_base = false;
    }
    if (has_base) address += frame.general(made.second);
    if (mode == 1)
      address += static_cast<uint64_t>(static_cast<int64_t>(static_cast<int8_t>(*at++)));
    if (mode == 2 || (mode == 0 && !has_base)) {
      int32_t displacement = 0;
      std::memcpy(&displacement, at, sizeof(displacement));
      address += static_cast<uint64_t>(static_cast<int64_t>(displacement));
      at += sizeof(displacement);
    }
    if (is_product) made.words = *at++;
    made.end = at;
    if (is_relative) address += std::bit_cast<uint64_t>(made.end);
    made.memory = mode == 3 ? nullptr : std::bit_cast<const uint8_t*>(address);
    return true;
  }

  __attribute__((target("aes,pclmul,sse4.1"))) static __m128i compute(const Instruction& what,
                                                                      __m128i a, __m128i b) {
    if (what.operation == 0x2DC) return _mm_aesenc_si128(a, b);
    if (what.operation == 0x2DD) return _mm_aesenclast_si128(a, b);
    // Only bits 0 and 4 count.
    const __m128i x = (what.words & 0x01) != 0 ? _mm_srli_si128(a, 8) : a;
    const __m128i y = (what.words & 0x10) != 0 ? _mm_srli_si128(b, 8) : b;
    return _mm_clmulepi64_si128(x, y, 0x00);
  }

  static void on_illegal_instruction(int signal_number, siginfo_t*, void* context) {
    Frame frame(context);
    Instruction what;
    if (!decode(frame, what)) {
      signal(signal_number, SIG_DFL);  // it happens again, and ends the process
      return;
    }
    __m128i results[2];
    for (size_t half = 0; half < 2; ++half) {
      const uint8_t* const second =
          what.memory != nullptr ? what.memory + 16 * half : frame.half(what.second, half);
      results[half] =
          compute(what, _mm_loadu_si128(reinterpret_cast<__m128i*>(frame.half(what.first, half))),
                  _mm_loadu_si128(reinterpret_cast<const __m128i*>(second)));
    }
    for (size_t half = 0; half < 2; ++half) {
      std::memcpy(frame.half(what.out, half), &results[half], 16);
    }
    frame.go_on_at(what.end);
    ++emulated_;
  }

  static inline uint64_t emulated_ = 0;  // instructions so far
  struct sigaction before_ = {};         // put back at the end
};

}  // namespace securefabric::crypto

#endif
