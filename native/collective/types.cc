#include "collective/types.h"

#include "base/check.h"

namespace securefabric::collective {

const char* operation_kind_name(OperationKind kind) {
  switch (kind) {
    case OperationKind::kAllReduce: return "all_reduce";
    case OperationKind::kBroadcast: return "broadcast";
    case OperationKind::kReduce: return "reduce";
    case OperationKind::kAllGather: return "all_gather";
    case OperationKind::kReduceScatter: return "reduce_scatter";
    case OperationKind::kAllToAll: return "all_to_all";
    case OperationKind::kGather: return "gather";
    case OperationKind::kScatter: return "scatter";
    case OperationKind::kBarrier: return "barrier";
    case OperationKind::kSend: return "send";
    case OperationKind::kReceive: return "recv";
  }
  return "unknown";  // a peer's signature may hold any byte; its name goes into the error
}

std::optional<OperationKind> parse_operation_kind(std::string_view name) {
  for (auto value = static_cast<uint8_t>(OperationKind::kAllReduce);
       value <= static_cast<uint8_t>(OperationKind::kBarrier); ++value) {
    const auto kind = static_cast<OperationKind>(value);
    if (name == operation_kind_name(kind)) return kind;
  }
  return std::nullopt;
}

const char* data_type_name(DataType type) {
  switch (type) {
    case DataType::kByte: return "bytes";
    case DataType::kInt8: return "int8";
    case DataType::kUint8: return "uint8";
    case DataType::kInt16: return "int16";
    case DataType::kUint16: return "uint16";
    case DataType::kInt32: return "int32";
    case DataType::kUint32: return "uint32";
    case DataType::kInt64: return "int64";
    case DataType::kUint64: return "uint64";
    case DataType::kFloat16: return "float16";
    case DataType::kBfloat16: return "bfloat16";
    case DataType::kFloat32: return "float32";
    case DataType::kFloat64: return "float64";
    case DataType::kBool: return "bool";
    case DataType::kComplex64: return "complex64";
    case DataType::kComplex128: return "complex128";
  }
  return "unknown";
}

const char* reduce_op_name(ReduceOp op) {
  switch (op) {
    case ReduceOp::kNone: return "none";
    case ReduceOp::kSum: return "SUM";
    case ReduceOp::kAvg: return "AVG";
    case ReduceOp::kProduct: return "PRODUCT";
    case ReduceOp::kMin: return "MIN";
    case ReduceOp::kMax: return "MAX";
    case ReduceOp::kBitAnd: return "BAND";
    case ReduceOp::kBitOr: return "BOR";
    case ReduceOp::kBitXor: return "BXOR";
    case ReduceOp::kPremulSum: return "PREMUL_SUM";
  }
  return "unknown";
}

size_t data_type_bytes(DataType type) {
  switch (type) {
    case DataType::kByte:
    case DataType::kInt8:
    case DataType::kUint8:
    case DataType::kBool: return 1;
    case DataType::kInt16:
    case DataType::kUint16:
    case DataType::kFloat16:
    case DataType::kBfloat16: return 2;
    case DataType::kInt32:
    case DataType::kUint32:
    case DataType::kFloat32: return 4;
    case DataType::kInt64:
    case DataType::kUint64:
    case DataType::kFloat64:
    case DataType::kComplex64: return 8;
    case DataType::kComplex128: return 16;
  }
  SF_CHECK_MSG(false, "data type " + std::to_string(static_cast<int>(type)));
}

}  // namespace securefabric::collective
