// Tensors as the core takes them: dense bytes in logical order, with a type it knows.
#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <vector>

#include "base/bytes.h"
#include "collective/schedule.h"
#include "collective/types.h"
#include "torch/device_stage.h"

namespace securefabric::torch_room {

// The core's type for a tensor's elements; kByte where the core only moves them (float8, ...).
collective::DataType data_type_of(const at::Tensor& tensor);

// The same elements as dense bytes in logical order, without a lazy conjugation or negation; a copy
// only where needed.
at::Tensor to_plain(const at::Tensor& tensor);

// Throws unless the tensor lies where we can take it.
void check_device(const char* name, const at::Tensor& tensor);

// Throws unless the tensor is one that operation `name` can take: on the CPU and strided.
void check_tensor(const char* name, const at::Tensor& tensor);

// The tensors of one operation on their way into a buffer table and back.
//
// A dense tensor in host memory is used where it lies. Any other goes through a dense copy in
// logical order, so that ranks may have different strides; what was written to a copy is copied
// back by `finish`. All tensors of a table are on one device.
class TensorTable {
 public:
  // With `is_staged` tensors in host memory are copied as well, as those of a device are.
  explicit TensorTable(bool is_staged = false) : is_staged_(is_staged) {}

  // Each returns the region of the whole tensor. An input may be read until the operation is done.
  collective::Region add_input(const at::Tensor& tensor);
  collective::Region add_output(const at::Tensor& tensor);
  // Read and written in place.
  collective::Region add_in_out(const at::Tensor& tensor);
  // An input that may lie where `output` does: exactly there it is used in place, and when it
  // overlaps any output otherwise it is copied first.
  collective::Region add_aliasing_input(const at::Tensor& tensor, const collective::Region& output);
  // An input of which the piece at `offset` may be exactly `output`; copied when it overlaps an
  // output in any other way. In the allowed case the region may refer to the output's bytes.
  collective::Region add_shared_input(const at::Tensor& tensor, const collective::Region& output,
                                      uint64_t offset);
  // An input that is copied first when it overlaps any output.
  collective::Region add_disjoint_input(const at::Tensor& tensor);

  // `finish` copies what is then in the region of a whole tensor to another tensor as well, of as
  // many elements.
  void copy_result(const collective::Region& region, const at::Tensor& to);

  // Whether two regions are the same bytes, by whatever buffers.
  bool is_same_memory(const collective::Region& a, const collective::Region& b) const;

  std::vector<base::MutableBytes> buffers() const;

  // Whether `await_inputs` has to be called before the buffers are read.
  bool is_staged() const { return is_staged_ || has_downloads_; }
  // Waits until all inputs have arrived in host memory.
  void await_inputs() const;
  // The same for at most so long; false when a copy is still under way then.
  bool has_inputs_by(base::Instant until) const;
  // Copies results back to the tensors that are not themselves buffers. Once the operation has
  // succeeded; on a device the copies are only enqueued.
  void finish() const;
  // Where the copies of `finish` run; null for tensors in host memory.
  const DeviceStage* stage() const { return stage_.get(); }

 private:
  collective::Region add(const at::Tensor& dense, bool is_output);
  bool is_usable(const at::Tensor& tensor) const;
  at::Tensor bring(const at::Tensor& tensor);
  at::Tensor room_for(const at::Tensor& tensor);
  DeviceStage& stage_of(const at::Tensor& tensor);
  collective::Region add_apart(const at::Tensor& dense);
  base::MutableBytes bytes_of(size_t buffer) const;
  bool overlaps_output(const at::Tensor& dense) const;

  struct Entry {
    at::Tensor dense;                 // where the core reads and writes
    bool is_output = false;           // the core writes to it
    std::vector<at::Tensor> targets;  // to copy it to in the end; none for the tensor itself
  };
  std::vector<Entry> entries_;
  bool is_staged_;
  bool has_downloads_ = false;
  std::shared_ptr<DeviceStage> stage_;  // null for tensors in host memory
};

}  // namespace securefabric::torch_room
