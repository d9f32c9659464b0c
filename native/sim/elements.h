// The naive side of the oracle: elements of any type as plain integers, and the reductions on them.
//
// Values are small integers that every type represents exactly, and so are all results of SUM,
// PRODUCT, MIN, MAX and the bitwise operators (see is_exact); integer results that leave the
// type wrap around. An average is divided once, in double, and rounded once (float16 and bfloat16:
// twice, through float32, as the reduction's definition says).
#pragma once

#include <cstdint>
#include <span>

#include "base/bytes.h"
#include "collective/types.h"

namespace securefabric::sim {

// The types that the oracle knows.
std::span<const collective::DataType> oracle_types();
bool is_float(collective::DataType type);
// Whether the operator is defined on the type.
bool is_defined(collective::ReduceOp op, collective::DataType type);
// Whether every order of reduction gives the oracle's result: up to so many ranks with every
// operator, beyond only where neither a half type nor int64_t can run out of bits.
inline constexpr uint32_t kExactRanksMax = 32;
bool is_exact(collective::ReduceOp op, collective::DataType type, uint32_t ranks);

// The factor of PREMUL_SUM in every simulated call.
inline constexpr double kPremulFactor = 2.0;

// Value number `index` of a rank's input, which depends on nothing else: 1 to 4 for unsigned types,
// -2, -1, 1 or 2 for the others. Never 0: the sign of a zero product is not an integer's business.
int64_t input_value(collective::DataType type, uint64_t seed, uint32_t rank, uint64_t index);
// What `op` makes of the values of all ranks, before an average is divided.
int64_t reduce_values(collective::ReduceOp op, std::span<const int64_t> values);
// Writes one element. `divisor` is the number of ranks for AVG and 1 otherwise.
void write_element(collective::DataType type, int64_t value, int64_t divisor, uint8_t* out);

}  // namespace securefabric::sim
