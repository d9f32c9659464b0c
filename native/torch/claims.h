// Which memory the results of one call go to, so that tensors that overlap are noticed.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <map>

namespace securefabric::torch_room {

// Strided tensors count with all that lies between their elements.
class Claims {
 public:
  // For a part of the call that will write to the tensor. False, and nothing changes, where that
  // overlaps what was claimed before.
  bool claim(const at::Tensor& tensor, size_t part);
  // Whether another part writes to memory of the tensor.
  bool is_of_another(const at::Tensor& tensor, size_t part) const;

 private:
  struct Span {
    uintptr_t end = 0;
    size_t part = 0;
  };
  using Spans = std::map<uintptr_t, Span>;  // by begin; disjoint, none empty

  // The first span that ends after `begin`.
  Spans::const_iterator first_after(uintptr_t begin) const;

  Spans spans_;
};

}  // namespace securefabric::torch_room
