#include "torch/arguments.h"

#include <torch/csrc/distributed/c10d/Utils.hpp>

namespace securefabric::torch_room {

using collective::Region;

std::function<void(const std::string&)> refuse(const char* name) {
  return
      [name](const std::string& what) { TORCH_CHECK(false, "securefabric::", name, ": ", what); };
}

void check_single(const char* name, const std::vector<at::Tensor>& tensors) {
  c10d::assertSingleElement(refuse(name), tensors);
  check_tensor(name, tensors.front());
}

void check_single_input(const char* name, const std::vector<at::Tensor>& tensors) {
  c10d::assertSingleElementInput(refuse(name), tensors);
  check_tensor(name, tensors.front());
}

void check_single_output(const char* name, const std::vector<at::Tensor>& tensors) {
  c10d::assertSingleElementOutput(refuse(name), tensors);
  check_tensor(name, tensors.front());
}

void check_alike(const char* name, const std::vector<at::Tensor>& tensors) {
  c10d::assertNonEmpty(refuse(name), tensors);
  c10d::assertLayoutMatch(refuse(name), tensors);
  check_list(name, tensors, tensors.front(), /*same_size=*/true);
}

void check_list(const char* name, const std::vector<at::Tensor>& tensors, const at::Tensor& like,
                bool same_size) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    check_tensor(name, tensors[i]);
    c10d::assertTypeMatch(refuse(name), like.options(), tensors, i);
    // Ranks may see different shapes of the same elements.
    if (same_size && tensors[i].numel() != like.numel()) {
      c10d::assertSizesMatch(refuse(name), like.sizes(), tensors, i);
    }
  }
}

namespace {

const char* name_of(Side side) {
  return side == Side::kInput ? "input" : "output";
}

}  // namespace

void check_any_input(const char* name, const std::vector<at::Tensor>& inputs) {
  TORCH_CHECK(!inputs.empty(), "securefabric::", name, ": requires non-empty input tensor list");
}

void check_pairs(const char* name, size_t outputs, size_t inputs) {
  TORCH_CHECK(outputs == inputs, "securefabric::", name,
              ": requires input/output tensor lists to have the same length");
}

void check_lists_of_ranks(const char* name, const TensorLists& outputs, size_t inputs, int size) {
  TORCH_CHECK(outputs.size() == static_cast<size_t>(size), "securefabric::", name,
              ": output lists should be equal to world size");
  for (const auto& of_rank : outputs) {
    TORCH_CHECK(of_rank.size() == inputs, "securefabric::", name,
                ": invalid output size: (expected length ", inputs, ", got ", of_rank.size(), ")");
  }
}

void check_list_of_root(const char* name, Side side, const TensorLists& lists, int size) {
  TORCH_CHECK(lists.size() == 1, "securefabric::", name, ": requires a single-element ",
              name_of(side), " list containing a list with ", size, " tensors.");
  TORCH_CHECK(lists[0].size() == static_cast<size_t>(size), "securefabric::", name, ": Incorrect ",
              name_of(side), " list size ", lists[0].size(), ". ",
              side == Side::kInput ? "Input" : "Output", " list size should be ", size,
              ", same as size of the process group.");
}

void check_no_list(const char* name, Side side, const TensorLists& lists) {
  TORCH_CHECK(lists.empty(), "securefabric::", name, ": requires empty ", name_of(side),
              " on non-root");
}

void check_one_per_rank(const char* name, Side side, const std::vector<at::Tensor>& tensors,
                        int size) {
  TORCH_CHECK(tensors.size() == static_cast<size_t>(size), "securefabric::", name, ": ",
              name_of(side), " tensor list size ", tensors.size(), " does not match world size ",
              size);
}

uint64_t total_elements(const std::vector<at::Tensor>& tensors) {
  uint64_t count = 0;
  for (const at::Tensor& tensor : tensors) count += static_cast<uint64_t>(tensor.numel());
  return count;
}

std::vector<Region> split_evenly(const Region& whole, int size) {
  std::vector<Region> pieces;
  const uint64_t length = whole.length / static_cast<uint64_t>(size);
  for (int i = 0; i < size; ++i) {
    pieces.push_back({whole.buffer, whole.offset + static_cast<uint64_t>(i) * length, length});
  }
  return pieces;
}

std::vector<Region> split_rows(const char* name, const Region& whole, const at::Tensor& tensor,
                               const std::vector<int64_t>& splits, int size) {
  const int64_t rows = tensor.dim() == 0 ? 1 : tensor.size(0);
  if (splits.empty()) {
    TORCH_CHECK(rows % size == 0, "securefabric::", name,
                ": Tensor's dim 0 does not divide equally across group size (", rows, " rows, ",
                size, " ranks)");
    return split_evenly(whole, size);
  }
  TORCH_CHECK(splits.size() == static_cast<size_t>(size), "securefabric::", name,
              ": Number of tensor splits not equal to group size (", splits.size(), " splits, ",
              size, " ranks)");
  int64_t sum = 0;
  for (const int64_t split : splits) {
    TORCH_CHECK(split >= 0, "securefabric::", name, ": negative split size ", split);
    sum += split;
  }
  TORCH_CHECK(sum == rows, "securefabric::", name, ": Split sizes doesn't match total dim 0 size (",
              sum, " is not ", rows, ")");
  std::vector<Region> pieces;
  const uint64_t row_bytes = rows == 0 ? 0 : whole.length / static_cast<uint64_t>(rows);
  uint64_t offset = 0;
  for (const int64_t split : splits) {
    const uint64_t length = static_cast<uint64_t>(split) * row_bytes;
    pieces.push_back({whole.buffer, offset, length});
    offset += length;
  }
  return pieces;
}

void check_own(const char* name, const std::vector<Region>& inputs,
               const std::vector<Region>& outputs, int rank) {
  const uint64_t sent = inputs[static_cast<size_t>(rank)].length;
  const uint64_t expected = outputs[static_cast<size_t>(rank)].length;
  TORCH_CHECK(sent == expected, "securefabric::", name, ": rank ", rank, " sends itself ", sent,
              " bytes and expects ", expected, "; its own parts must have the same size");
}

}  // namespace securefabric::torch_room
