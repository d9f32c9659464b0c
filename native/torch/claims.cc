#include "torch/claims.h"

#include <iterator>
#include <utility>

namespace securefabric::torch_room {

namespace {

// Begin and end of the memory that the tensor's elements span; equal where there is none.
std::pair<uintptr_t, uintptr_t> extent_of(const at::Tensor& tensor) {
  const auto begin = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  if (tensor.numel() == 0) return {begin, begin};
  int64_t last = 0;
  for (int64_t i = 0; i < tensor.dim(); ++i) last += (tensor.size(i) - 1) * tensor.stride(i);
  return {begin, begin + static_cast<uintptr_t>(last + 1) * tensor.element_size()};
}

}  // namespace

Claims::Spans::const_iterator Claims::first_after(uintptr_t begin) const {
  auto at = spans_.upper_bound(begin);
  if (at != spans_.begin() && std::prev(at)->second.end > begin) --at;
  return at;
}

bool Claims::claim(const at::Tensor& tensor, size_t part) {
  const auto [begin, end] = extent_of(tensor);
  if (begin == end) return true;
  if (const auto at = first_after(begin); at != spans_.end() && at->first < end) return false;
  spans_[begin] = {end, part};
  return true;
}

bool Claims::is_of_another(const at::Tensor& tensor, size_t part) const {
  const auto [begin, end] = extent_of(tensor);
  for (auto at = first_after(begin); at != spans_.end() && at->first < end; ++at) {
    if (at->second.part != part) return true;
  }
  return false;
}

}  // namespace securefabric::torch_room
