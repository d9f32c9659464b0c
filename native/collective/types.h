// What an operation is: its kind, element type and reduce operator, without torch's types.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace securefabric::collective {

enum class OperationKind : uint8_t {
  kAllReduce = 1,
  kBroadcast,
  kReduce,
  kAllGather,
  kReduceScatter,
  kAllToAll,
  kGather,
  kScatter,
  kBarrier,
  kSend,
  kReceive,
};

enum class DataType : uint8_t {
  kByte = 1,  // opaque bytes: movement operations only
  kInt8,
  kUint8,
  kInt16,
  kUint16,
  kInt32,
  kUint32,
  kInt64,
  kUint64,
  kFloat16,
  kBfloat16,
  kFloat32,
  kFloat64,
  kBool,
  kComplex64,   // SUM, AVG and PREMUL_SUM only, component by component
  kComplex128,  // likewise
};

enum class ReduceOp : uint8_t {
  kNone = 0,  // movement operations
  kSum,
  kAvg,
  kProduct,
  kMin,
  kMax,
  kBitAnd,
  kBitOr,
  kBitXor,
  kPremulSum,
};

const char* operation_kind_name(OperationKind kind);  // "all_reduce", ...
// Nothing for a name that is none, and for the two that are no collectives.
std::optional<OperationKind> parse_operation_kind(std::string_view name);
const char* data_type_name(DataType type);  // "float32", ...
const char* reduce_op_name(ReduceOp op);    // "SUM", ...; "none"
size_t data_type_bytes(DataType type);

}  // namespace securefabric::collective
