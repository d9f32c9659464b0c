// Tensors as the core takes them: dense bytes in logical order, with a type it knows.
#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "base/bytes.h"
#include "collective/schedule.h"
#include "collective/types.h"

namespace securefabric::torch_room {

// The core's type for a tensor's elements; kByte where the core only moves them (float8, ...).
collective::DataType data_type_of(const at::Tensor& tensor);

// Throws unless the tensor is one that operation `name` can take: on the CPU and strided.
void check_tensor(const char* name, const at::Tensor& tensor);

// The tensors of one operation on their way into a buffer table and back.
//
// A dense tensor is used where it lies. Any other goes through a dense copy in logical order, so
// that ranks may have different strides; what was written to a copy is copied back by `finish`.
class TensorTable {
 public:
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

  // Whether two regions are the same bytes, by whatever buffers.
  bool is_same_memory(const collective::Region& a, const collective::Region& b) const;

  std::vector<base::MutableBytes> buffers() const;
  // Copies results back to the tensors that were not dense. Once the operation has succeeded.
  void finish() const;

 private:
  collective::Region add(const at::Tensor& dense, bool is_output);
  base::MutableBytes bytes_of(size_t buffer) const;
  bool overlaps_output(const at::Tensor& dense) const;

  struct Entry {
    at::Tensor dense;        // where the core reads and writes
    at::Tensor original;     // to copy back to; undefined when `dense` is the tensor itself
    bool is_output = false;  // the core writes to it
  };
  std::vector<Entry> entries_;
};

}  // namespace securefabric::torch_room
