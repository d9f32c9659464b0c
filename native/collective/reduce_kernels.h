// Element-by-element arithmetic of the reductions: one kernel per (data type, operator).
//
// The rules, the same with every instruction set, so that ranks on different CPUs agree bit by bit:
//   integers   wrap around (two's complement), also in the sum of AVG, whose division truncates
//   toward
//              zero; PREMUL_SUM does not exist.
//   float16, bfloat16   each step is computed in float32 and rounded to nearest even.
//   NaN        any NaN operand makes the result NaN, in MIN and MAX too; every NaN that a kernel
//              writes is the one quiet NaN with clear sign and no payload (float_bits.h).
//   MIN, MAX   -0.0 is smaller than +0.0.
//   bool       a non-zero byte is true, the result is 0 or 1: SUM, MAX and BOR are "or"; PRODUCT,
//              MIN and BAND are "and"; BXOR is "xor".
//   complex    SUM, AVG and PREMUL_SUM, on real and imaginary parts alone.
// AVG and PREMUL_SUM reduce with SUM; the factor is applied before the first step (prepare), the
// division once after the last (finish).
//
// A sum of subnormal floats depends on the calling thread's floating-point environment: callers
// keep the default one (no flush to zero).
#pragma once

#include <cstddef>
#include <cstdint>

#include "collective/types.h"

namespace securefabric::collective {

// target[i] = left[i] (op) right[i]. `bytes` is a multiple of the element size. No pointer need be
// aligned. `target` is `left`, is `right` (or both), or overlaps neither.
using ReduceFn = void (*)(uint8_t* target, const uint8_t* left, const uint8_t* right, size_t bytes);

// target[i] = operand[i] scaled by `value`; the pointers as above.
using ScaleFn = void (*)(uint8_t* target, const uint8_t* operand, size_t bytes, double value);

// The instruction set a kernel was compiled for; each gives the same bits.
enum class Isa : uint8_t {
  kBaseline,  // what the compiler may assume of every CPU of the architecture
  kAvx2,      // x86-64 with AVX2 and F16C
  kAvx512,    // x86-64 with AVX-512 F, BW, DQ and VL, and F16C
};
bool is_isa_supported(Isa isa);
// The best supported one; found out once.
Isa best_isa();

// nullptr where the operator is not defined on the type, which is the caller's error to report.
ReduceFn find_reduce_kernel(DataType type, ReduceOp op, Isa isa = best_isa());

// PREMUL_SUM: multiplies by `value` rounded to the element type (float32 for the half types).
// nullptr for types without PREMUL_SUM.
ScaleFn find_prepare_kernel(DataType type, Isa isa = best_isa());

// AVG: divides by `value`, the number of ranks, in the element type (float32 for the half types).
// nullptr for types without AVG.
ScaleFn find_finish_kernel(DataType type, Isa isa = best_isa());

}  // namespace securefabric::collective
