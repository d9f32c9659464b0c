#include "torch/tensors.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/core/grad_mode.h>

#include "torch/overwrite.h"

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
  TORCH_CHECK(tensor.layout() == at::kStrided, "securefabric::", name, ": unsupported layout ",
              tensor.layout(), ": only strided (dense) tensors");
  check_device(name, tensor);
}

void check_device(const char* name, const at::Tensor& tensor) {
  TORCH_CHECK(tensor.device().is_cpu() || tensor.device().is_cuda(), "securefabric::", name,
              ": takes tensors in host memory and of CUDA devices, got one on ", tensor.device(),
              "; move it with .cpu()");
}

Region TensorTable::add(const at::Tensor& dense, bool is_output) {
  entries_.push_back({dense, is_output, {}});
  return Region{static_cast<uint32_t>(entries_.size() - 1), 0, dense.nbytes()};
}

namespace {

// contiguous() alone would keep a lazy conjugation or negation.
bool is_plain(const at::Tensor& tensor) {
  return tensor.is_contiguous() && !tensor.is_conj() && !tensor.is_neg();
}

}  // namespace

at::Tensor to_plain(const at::Tensor& tensor) {
  const at::NoGradGuard no_grad;
  return is_plain(tensor) ? tensor : tensor.resolve_conj().resolve_neg().contiguous();
}

// Whether the core can work on the tensor's own memory.
bool TensorTable::is_usable(const at::Tensor& tensor) const {
  return tensor.is_cpu() && !is_staged_ && is_plain(tensor);
}

DeviceStage& TensorTable::stage_of(const at::Tensor& tensor) {
  if (!stage_) stage_ = std::make_shared<DeviceStage>(tensor.device());
  TORCH_CHECK(stage_->stream().device() == tensor.device(),
              "securefabric: tensors should be on the same device, got one on ", tensor.device(),
              " and one on ", stage_->stream().device());
  return *stage_;
}

// Host memory like the tensor, without its elements.
at::Tensor TensorTable::room_for(const at::Tensor& tensor) {
  if (!tensor.is_cpu()) return stage_of(tensor).host_like(tensor);
  return at::empty(tensor.sizes(), tensor.options(), at::MemoryFormat::Contiguous);
}

// The tensor's elements in host memory: later, for those of a device (await_inputs).
at::Tensor TensorTable::bring(const at::Tensor& tensor) {
  if (is_usable(tensor)) return tensor;
  if (tensor.is_cpu() && !is_staged_) return to_plain(tensor);
  const at::NoGradGuard no_grad;
  const at::Tensor host = room_for(tensor);
  if (tensor.is_cpu()) {
    host.copy_(tensor);
  } else {
    stage_of(tensor).download(host, tensor);
    has_downloads_ = true;
  }
  return host;
}

void TensorTable::await_inputs() const {
  if (has_downloads_) stage_->await();
}

bool TensorTable::has_inputs_by(base::Instant until) const {
  return !has_downloads_ || stage_->is_done_by(until);
}

Region TensorTable::add_input(const at::Tensor& tensor) {
  return add(bring(tensor), /*is_output=*/false);
}

Region TensorTable::add_output(const at::Tensor& tensor) {
  at::assert_no_internal_overlap(tensor);  // as of expand(): two results for one element
  if (is_usable(tensor)) return add(tensor, /*is_output=*/true);
  const Region region = add(room_for(tensor), /*is_output=*/true);
  entries_.back().targets = {tensor};
  return region;
}

Region TensorTable::add_in_out(const at::Tensor& tensor) {
  at::assert_no_internal_overlap(tensor);
  if (is_usable(tensor)) return add(tensor, /*is_output=*/true);
  const Region region = add(bring(tensor), /*is_output=*/true);
  entries_.back().targets = {tensor};
  return region;
}

Region TensorTable::add_aliasing_input(const at::Tensor& tensor, const Region& output) {
  const at::Tensor dense = bring(tensor);
  const auto* begin = static_cast<const uint8_t*>(dense.const_data_ptr());
  const bool is_output =
      begin == bytes_of(output.buffer).data() + output.offset && dense.nbytes() == output.length;
  return is_output ? output : add_apart(dense);
}

Region TensorTable::add_shared_input(const at::Tensor& tensor, const Region& output,
                                     uint64_t offset) {
  const at::Tensor dense = bring(tensor);
  const auto* piece = static_cast<const uint8_t*>(dense.const_data_ptr()) + offset;
  const bool is_output = piece == bytes_of(output.buffer).data() + output.offset;
  return is_output ? add(dense, /*is_output=*/false) : add_apart(dense);
}

Region TensorTable::add_disjoint_input(const at::Tensor& tensor) {
  return add_apart(bring(tensor));
}

Region TensorTable::add_apart(const at::Tensor& dense) {
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

void TensorTable::copy_result(const Region& region, const at::Tensor& to) {
  entries_[region.buffer].targets.push_back(to);
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
  const at::NoGradGuard no_grad;
  for (const Entry& entry : entries_) {
    for (const at::Tensor& target : entry.targets) {
      const at::Tensor result = entry.dense.view(target.sizes());
      if (stage_) {
        stage_->upload(target, result);
      } else {
        overwrite(target, result);
      }
    }
  }
}

}  // namespace securefabric::torch_room
