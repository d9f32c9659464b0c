#include "sim/elements.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/check.h"
#include "base/random.h"
#include "collective/float_bits.h"

namespace securefabric::sim {

using collective::DataType;
using collective::ReduceOp;

namespace {

constexpr std::array kTypes = {DataType::kUint8,    DataType::kInt8,    DataType::kInt16,
                               DataType::kInt32,    DataType::kInt64,   DataType::kFloat16,
                               DataType::kBfloat16, DataType::kFloat32, DataType::kFloat64};

template <typename T>
void store(T value, uint8_t* out) {
  std::memcpy(out, &value, sizeof(value));
}

}  // namespace

std::span<const DataType> oracle_types() {
  return kTypes;
}

bool is_float(DataType type) {
  return type == DataType::kFloat16 || type == DataType::kBfloat16 || type == DataType::kFloat32 ||
         type == DataType::kFloat64;
}

bool is_defined(ReduceOp op, DataType type) {
  switch (op) {
    case ReduceOp::kNone: return false;
    case ReduceOp::kAvg:
    case ReduceOp::kPremulSum: return is_float(type);
    case ReduceOp::kBitAnd:
    case ReduceOp::kBitOr:
    case ReduceOp::kBitXor: return !is_float(type);
    default: return true;
  }
}

bool is_exact(ReduceOp op, DataType type, uint32_t ranks) {
  const bool is_half = type == DataType::kFloat16 || type == DataType::kBfloat16;
  return ranks <= kExactRanksMax || (op != ReduceOp::kProduct && !is_half);
}

int64_t input_value(DataType type, uint64_t seed, uint32_t rank, uint64_t index) {
  // One multiply-mix per element: the buffers are large and there are many.
  uint64_t mixed = (seed + (uint64_t{rank} << 40) + index) * 0x9E37'79B9'7F4A'7C15;
  mixed = (mixed ^ (mixed >> 29)) * 0xBF58'476D'1CE4'E5B9;
  const auto small = static_cast<int64_t>((mixed >> 40) % 4) + 1;
  if (type == DataType::kUint8) return small;
  return small <= 2 ? small : 2 - small;
}

int64_t reduce_values(ReduceOp op, std::span<const int64_t> values) {
  int64_t result = values.front();
  for (const int64_t value : values.subspan(1)) {
    switch (op) {
      case ReduceOp::kSum:
      case ReduceOp::kAvg:
      case ReduceOp::kPremulSum: result += value; break;
      case ReduceOp::kProduct:  // wraps around, as the integer types do
        result = static_cast<int64_t>(static_cast<uint64_t>(result) * static_cast<uint64_t>(value));
        break;
      case ReduceOp::kMin: result = std::min(result, value); break;
      case ReduceOp::kMax: result = std::max(result, value); break;
      case ReduceOp::kBitAnd: result &= value; break;
      case ReduceOp::kBitOr: result |= value; break;
      case ReduceOp::kBitXor: result ^= value; break;
      case ReduceOp::kNone: SF_CHECK_MSG(false, "not a reduction");
    }
  }
  return op == ReduceOp::kPremulSum ? result * static_cast<int64_t>(kPremulFactor) : result;
}

void write_element(DataType type, int64_t value, int64_t divisor, uint8_t* out) {
  const double real = static_cast<double>(value) / static_cast<double>(divisor);
  switch (type) {
    case DataType::kUint8:
    case DataType::kInt8: store(static_cast<uint8_t>(value), out); return;
    case DataType::kInt16: store(static_cast<uint16_t>(value), out); return;
    case DataType::kInt32: store(static_cast<uint32_t>(value), out); return;
    case DataType::kInt64: store(value, out); return;
    case DataType::kFloat16:
      store(collective::narrow<collective::Float16>(static_cast<float>(real)).bits, out);
      return;
    case DataType::kBfloat16:
      store(collective::narrow<collective::Bfloat16>(static_cast<float>(real)).bits, out);
      return;
    case DataType::kFloat32: store(static_cast<float>(real), out); return;
    case DataType::kFloat64: store(real, out); return;
    default: SF_CHECK_MSG(false, collective::data_type_name(type));
  }
}

}  // namespace securefabric::sim
