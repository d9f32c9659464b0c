#include "torch/tensors.h"

namespace securefabric::torch_room {

using collective::DataType;
using collective::Region;

DataType data_type_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kChar: return DataType::kInt8;
    case at::kByte: return DataType::kUint8;
    case at::kShort: return DataType::kInt16;
    case at::kUInt16: return DataType::kUint16;
    case at::kInt: return DataType::kInt32;
    case at::kUInt32: return DataType::kUint32;
    case at::kLong: return DataType::kInt64;
    case at::kUInt64: return DataType::kUint64;
    case at::kHalf: return DataType::kFloat16;
    case at::kBFloat16: return DataType::kBfloat16;
    case at::kFloat: return DataType::kFloat32;
    case at::kDouble: return DataType::kFloat64;
    case at::kBool: return DataType::kBool;
    case at::kComplexFloat: return DataType::kComplex64;
    case at::kComplexDouble: return DataType::kComplex128;
    default: return DataType::kByte;
  }
}

void check_tensor(const char* name, const at::Tensor& tensor) {
  TORCH_CHECK(tensor.defined(), "securefabric::", name, ": an undefined tensor");
  TORCH_CHECK(tensor.layout() == at::kStrided, "securefabric::", name,
              ": requires dense tensors, got ", tensor.layout());
  TORCH_CHECK(tensor.device().is_cpu(), "securefabric::", name,
              ": this build takes CPU tensors, got one on ", tensor.device(),
              "; move it with .cpu(), or use \"cpu:securefabric,cuda:nccl\" as the backend");
}

Region TensorTable::add(const at::Tensor& dense, bool is_output) {
  entries_.push_back({dense, {}, is_output});
  return Region{static_cast<uint32_t>(entries_.size() - 1), 0, dense.nbytes()};
}

namespace {

// contiguous() alone would keep a lazy conjugation or negation.
bool is_plain(const at::Tensor& tensor) {
  return tensor.is_contiguous() && !tensor.is_conj() && !tensor.is_neg();
}

at::Tensor to_plain(const at::Tensor& tensor) {
  return is_plain(tensor) ? tensor : tensor.resolve_conj().resolve_neg().contiguous();
}

}  // namespace

Region TensorTable::add_input(const at::Tensor& tensor) {
  return add(to_plain(tensor), /*is_output=*/false);
}

Region TensorTable::add_output(const at::Tensor& tensor) {
  if (is_plain(tensor)) return add(tensor, /*is_output=*/true);
  const Region region =
      add(at::empty(tensor.sizes(), tensor.options(), at::MemoryFormat::Contiguous), true);
  entries_.back().original = tensor;
  return region;
}

Region TensorTable::add_in_out(const at::Tensor& tensor) {
  if (is_plain(tensor)) return add(tensor, /*is_output=*/true);
  const Region region = add(to_plain(tensor), /*is_output=*/true);
  entries_.back().original = tensor;
  return region;
}

Region TensorTable::add_aliasing_input(const at::Tensor& tensor, const Region& output) {
  const at::Tensor dense = to_plain(tensor);
  const auto* begin = static_cast<const uint8_t*>(dense.const_data_ptr());
  const bool is_output =
      begin == bytes_of(output.buffer).data() + output.offset && dense.nbytes() == output.length;
  return is_output ? output : add_disjoint_input(dense);
}

Region TensorTable::add_shared_input(const at::Tensor& tensor, const Region& output,
                                     uint64_t offset) {
  const at::Tensor dense = to_plain(tensor);
  const auto* piece = static_cast<const uint8_t*>(dense.const_data_ptr()) + offset;
  const bool is_output = piece == bytes_of(output.buffer).data() + output.offset;
  return is_output ? add(dense, /*is_output=*/false) : add_disjoint_input(dense);
}

Region TensorTable::add_disjoint_input(const at::Tensor& tensor) {
  const at::Tensor dense = to_plain(tensor);
  return add(overlaps_output(dense) ? dense.clone() : dense, /*is_output=*/false);
}

bool TensorTable::overlaps_output(const at::Tensor& dense) const {
  const auto* begin = static_cast<const uint8_t*>(dense.const_data_ptr());
  const auto* end = begin + dense.nbytes();
  for (size_t i = 0; i < entries_.size(); ++i) {
    const base::MutableBytes other = bytes_of(i);
    if (entries_[i].is_output && begin < other.data() + other.size() && other.data() < end) {
      return true;
    }
  }
  return false;
}

base::MutableBytes TensorTable::bytes_of(size_t buffer) const {
  const at::Tensor& dense = entries_[buffer].dense;
  // Inputs are only read; the table has one type for all buffers.
  auto* data = static_cast<uint8_t*>(const_cast<void*>(dense.const_data_ptr()));
  return {data, dense.nbytes()};
}

bool TensorTable::is_same_memory(const Region& a, const Region& b) const {
  return a.length == b.length &&
         bytes_of(a.buffer).data() + a.offset == bytes_of(b.buffer).data() + b.offset;
}

std::vector<base::MutableBytes> TensorTable::buffers() const {
  std::vector<base::MutableBytes> buffers;
  buffers.reserve(entries_.size());
  for (size_t i = 0; i < entries_.size(); ++i) buffers.push_back(bytes_of(i));
  return buffers;
}

void TensorTable::finish() const {
  for (const Entry& entry : entries_) {
    if (entry.original.defined()) entry.original.copy_(entry.dense);
  }
}

}  // namespace securefabric::torch_room
