// What a call checks before anything is sent, in Gloo's words, which tests and users know; and the
// pieces that a tensor is cut into.
#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <string>
#include <vector>

#include "collective/schedule.h"
#include "torch/tensors.h"

namespace securefabric::torch_room {

// Throws "securefabric::<name>: <what>"; what the checks of c10d/Utils.hpp ask for.
std::function<void(const std::string&)> refuse(const char* name);

void check_single(const char* name, const std::vector<at::Tensor>& tensors);
void check_single_input(const char* name, const std::vector<at::Tensor>& tensors);
void check_single_output(const char* name, const std::vector<at::Tensor>& tensors);
// Several tensors of one call, alike in type and size.
void check_alike(const char* name, const std::vector<at::Tensor>& tensors);
// Every tensor of a list has the type of `like`; with `same_size` also its number of elements.
void check_list(const char* name, const std::vector<at::Tensor>& tensors, const at::Tensor& like,
                bool same_size);

// Which of a call's arguments is checked.
enum class Side { kInput, kOutput };
using TensorLists = std::vector<std::vector<at::Tensor>>;

// Lists that c10d/Utils.hpp checks only since torch 2.13.
void check_any_input(const char* name, const std::vector<at::Tensor>& inputs);
// An output, or a list of them, for each input.
void check_pairs(const char* name, size_t outputs, size_t inputs);
// A list for each rank, with an output for each input in it.
void check_lists_of_ranks(const char* name, const TensorLists& outputs, size_t inputs, int size);
// The root has one list with a tensor for each rank; the others have none.
void check_list_of_root(const char* name, Side side, const TensorLists& lists, int size);
void check_no_list(const char* name, Side side, const TensorLists& lists);
void check_one_per_rank(const char* name, Side side, const std::vector<at::Tensor>& tensors,
                        int size);

uint64_t total_elements(const std::vector<at::Tensor>& tensors);

// Equal pieces of a whole, one per rank.
std::vector<collective::Region> split_evenly(const collective::Region& whole, int size);
// Pieces of `splits[i]` rows of dimension 0; even ones when there are no splits.
std::vector<collective::Region> split_rows(const char* name, const collective::Region& whole,
                                           const at::Tensor& tensor,
                                           const std::vector<int64_t>& splits, int size);

// What this rank sends itself is what it expects of itself.
void check_own(const char* name, const std::vector<collective::Region>& inputs,
               const std::vector<collective::Region>& outputs, int rank);

}  // namespace securefabric::torch_room
