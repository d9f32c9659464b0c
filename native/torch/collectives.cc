// The dense collectives of a group: each method checks its arguments, names the regions that take
// part and starts one operation per tensor.
#include <torch/csrc/distributed/c10d/Utils.hpp>

#include "torch/arguments.h"
#include "torch/backend.h"
#include "torch/overwrite.h"
#include "torch/versions.h"

namespace securefabric::torch_room {

using collective::OperationKind;
using collective::Region;
using Works = c10::intrusive_ptr<c10d::Work>;

namespace {

uint64_t elements_of(const at::Tensor& tensor) {
  return static_cast<uint64_t>(tensor.numel());
}

// One for each part of the call.
std::vector<at::Tensor> own_outputs(CallBuilder& call, const std::vector<at::Tensor>& outputs) {
  std::vector<at::Tensor> own;
  for (size_t i = 0; i < outputs.size(); ++i) own.push_back(call.own_output(outputs[i], i));
  return own;
}

}  // namespace

Works Backend::broadcast(std::vector<at::Tensor>& tensors, const c10d::BroadcastOptions& opts) {
  constexpr const char* kOp = "broadcast";
  c10d::assertRootRank(refuse(kOp), opts.rootRank, size_);
  c10d::assertRootTensor(refuse(kOp), opts.rootTensor, static_cast<int64_t>(tensors.size()));
  check_alike(kOp, tensors);
  const at::Tensor& tensor = tensors[static_cast<size_t>(opts.rootTensor)];
  CallBuilder call = begin(kOp, c10d::OpType::BROADCAST, opts.timeout, opts.asyncOp);
  const bool is_root = rank_ == opts.rootRank;
  // The root only reads: its tensor may be an expanded view that nobody can write to.
  const auto pieces =
      tensors.size() == 1 ? call.pieces_of(tensor, !is_root) : std::vector<at::Tensor>{tensor};
  for (const at::Tensor& piece : pieces) {
    Part part = call.make_part(OperationKind::kBroadcast, piece, elements_of(piece));
    part.root = static_cast<uint32_t>(opts.rootRank);
    const Region region = is_root ? part.table.add_input(piece) : part.table.add_output(piece);
    if (is_root) part.inputs = {region};
    part.outputs = {region};
    for (const at::Tensor& other : tensors) {
      if (other.is_same(tensor)) continue;
      part.table.copy_result(region, other);
      call.count_version(other);
    }
    call.add(std::move(part));
  }
  call.profile(tensor);
  call.yield(tensors);
  return issue(std::move(call));
}

namespace {

Part& add_all_reduce_piece(CallBuilder& call, const at::Tensor& tensor, const c10d::ReduceOp& op) {
  Part part = call.make_part(OperationKind::kAllReduce, tensor, elements_of(tensor));
  part.reduction = reduction_of(call.name(), op, tensor);
  part.inputs = {part.table.add_in_out(tensor)};
  part.outputs = part.inputs;
  return call.add(std::move(part));
}

void add_all_reduce(CallBuilder& call, const at::Tensor& tensor, const c10d::ReduceOp& op) {
  for (const at::Tensor& piece : call.pieces_of(tensor, /*is_written=*/true)) {
    add_all_reduce_piece(call, piece, op);
  }
}

// The tensors of one rank count as if each were a rank's: they are reduced here first, in order,
// and all get the result.
void add_all_reduce_of_several(CallBuilder& call, const std::vector<at::Tensor>& tensors,
                               const c10d::ReduceOp& op) {
  TORCH_CHECK(tensors.front().is_cpu(), "securefabric::", call.name(),
              ": several tensors of a device; requires a single-element tensor list");
  const at::NoGradGuard no_grad;
  const at::Tensor sum =
      tensors.front().resolve_conj().resolve_neg().clone(at::MemoryFormat::Contiguous);
  Part& part = add_all_reduce_piece(call, sum, op);
  const collective::ReduceOp kind = part.reduction.op;
  TORCH_CHECK(kind != collective::ReduceOp::kAvg && kind != collective::ReduceOp::kPremulSum,
              "securefabric::", call.name(), ": ", collective::reduce_op_name(kind),
              " takes one tensor per rank");
  const auto reduce = collective::find_reduce_kernel(part.data_type, kind);
  auto* target = static_cast<uint8_t*>(sum.mutable_data_ptr());
  for (size_t i = 1; i < tensors.size(); ++i) {
    const at::Tensor next = to_plain(tensors[i]);
    reduce(target, target, static_cast<const uint8_t*>(next.const_data_ptr()), sum.nbytes());
  }
  for (const at::Tensor& tensor : tensors) part.table.copy_result(part.outputs.front(), tensor);
}

}  // namespace

Works Backend::allreduce(std::vector<at::Tensor>& tensors, const c10d::AllreduceOptions& opts) {
  constexpr const char* kOp = "all_reduce";
  c10d::assertNonEmpty(refuse(kOp), tensors);
  if (tensors.front().layout() == at::kSparse) return allreduce_sparse(tensors, opts);
  check_alike(kOp, tensors);
  CallBuilder call = begin(kOp, c10d::OpType::ALLREDUCE, opts.timeout, opts.asyncOp);
  if (tensors.size() == 1) {
    add_all_reduce(call, tensors.front(), opts.reduceOp);
  } else {
    add_all_reduce_of_several(call, tensors, opts.reduceOp);
  }
  for (const at::Tensor& tensor : tensors) call.profile(tensor);
  call.yield(tensors);
  return issue(std::move(call));
}

Works Backend::allreduce_sparse(std::vector<at::Tensor>& tensors,
                                const c10d::AllreduceOptions& opts) {
  constexpr const char* kOp = "all_reduce";
  c10d::assertNonEmpty(refuse(kOp), tensors);
  c10d::assertLayoutMatch(refuse(kOp), at::kSparse, tensors, 0);
  c10d::assertTypeAndSizesMatch(refuse(kOp), tensors);
  TORCH_CHECK(tensors.front().is_cpu(),
              "securefabric::all_reduce: sparse tensors only in host "
              "memory, got one on ",
              tensors.front().device());
  TORCH_CHECK(opts.reduceOp == c10d::ReduceOp::SUM, "securefabric::all_reduce: unsupported ",
              "reduction operation (allreduce of sparse tensors only works with ReduceOp.SUM)");
  at::Tensor own = SparseAllReduce::contribution(tensors);
  EndingWork::Facts facts;
  facts.type = c10d::OpType::_ALLREDUCE_SPARSE;
  facts.title = context_->presented_name + ":sparse_all_reduce";
  facts.profiled = tensors;
  facts.results = tensors;
  facts.ledger = context_->ledger;
  const auto timeout = opts.timeout == c10d::kUnsetTimeout ? options_->timeout : opts.timeout;
  c10::intrusive_ptr<SparseAllReduce> work;
  {
    const std::lock_guard<std::mutex> lock(issue_mutex_);
    facts.sequence = sequence_.fetch_add(1) + 1;
    facts.phase = context_->queue->phase();
    work = c10::make_intrusive<SparseAllReduce>(context_, sparse_lane_, std::move(facts),
                                                std::move(own), tensors, timeout);
    work->start();
    note_issued(work);
  }
  for (const at::Tensor& tensor : tensors) note_overwritten(tensor);
  work->watch();
  return work;
}

Works Backend::allreduce_coalesced(std::vector<at::Tensor>& tensors,
                                   const c10d::AllreduceCoalescedOptions& opts) {
  constexpr const char* kOp = "all_reduce";
  c10d::assertNonEmpty(refuse(kOp), tensors);
  CallBuilder call = begin(kOp, c10d::OpType::ALLREDUCE_COALESCED, opts.timeout, opts.asyncOp);
  for (size_t i = 0; i < tensors.size(); ++i) {
    add_all_reduce(call, call.own_in_out(tensors[i], i), opts.reduceOp);
    call.profile(tensors[i]);
  }
  call.yield_new_versions(tensors);
  return issue(std::move(call));
}

Works Backend::reduce(std::vector<at::Tensor>& tensors, const c10d::ReduceOptions& opts) {
  constexpr const char* kOp = "reduce";
  c10d::assertRootRank(refuse(kOp), opts.rootRank, size_);
  check_single(kOp, tensors);
  const at::Tensor& tensor = tensors.front();
  CallBuilder call = begin(kOp, c10d::OpType::REDUCE, opts.timeout, opts.asyncOp);
  const bool is_root = rank_ == opts.rootRank;
  for (const at::Tensor& piece : call.pieces_of(tensor, /*is_written=*/is_root)) {
    Part part = call.make_part(OperationKind::kReduce, piece, elements_of(piece));
    part.root = static_cast<uint32_t>(opts.rootRank);
    part.reduction = reduction_of(kOp, opts.reduceOp, piece);
    part.inputs = {is_root ? part.table.add_in_out(piece) : part.table.add_input(piece)};
    if (is_root) part.outputs = part.inputs;
    call.add(std::move(part));
  }
  call.profile(tensor);
  call.yield(tensors);
  return issue(std::move(call));
}

Part& Backend::add_all_gather(CallBuilder& call, const std::vector<at::Tensor>& outputs,
                              const at::Tensor& input) const {
  check_tensor(call.name(), input);
  check_list(call.name(), outputs, input, /*same_size=*/false);
  const auto own = static_cast<size_t>(rank_);
  if (outputs[own].numel() != input.numel()) {
    c10d::assertSizesMatch(refuse(call.name()), input.sizes(), outputs, own);
  }
  Part part = call.make_part(OperationKind::kAllGather, input, total_elements(outputs));
  for (const at::Tensor& output : outputs) part.outputs.push_back(part.table.add_output(output));
  part.inputs = {part.table.add_aliasing_input(input, part.outputs[own])};
  return call.add(std::move(part));
}

void Backend::add_all_gather_base(CallBuilder& call, const at::Tensor& output,
                                  const at::Tensor& input) const {
  check_tensor(call.name(), input);
  check_list(call.name(), {output}, input, /*same_size=*/false);
  TORCH_CHECK(output.numel() == input.numel() * size_, "securefabric::", call.name(),
              ": output tensor size must be equal to world_size times input tensor size (",
              output.numel(), " is not ", size_, " x ", input.numel(), ")");
  Part part = call.make_part(OperationKind::kAllGather, input, elements_of(output));
  part.outputs = split_evenly(part.table.add_output(output), size_);
  part.inputs = {part.table.add_aliasing_input(input, part.outputs[static_cast<size_t>(rank_)])};
  call.add(std::move(part));
}

// A rank has one input, and outputs for one per rank. As with Gloo it may also have several, of
// equal sizes: then there is an output list for each, all with the same contents, in which the
// inputs of a rank stand side by side.
Works Backend::allgather(std::vector<std::vector<at::Tensor>>& outputs,
                         std::vector<at::Tensor>& inputs, const c10d::AllgatherOptions& opts) {
  constexpr const char* kOp = "all_gather";
  check_any_input(kOp, inputs);
  check_pairs(kOp, outputs.size(), inputs.size());
  const size_t expected = inputs.size() * static_cast<size_t>(size_);
  for (size_t i = 0; i < outputs.size(); ++i) {
    TORCH_CHECK(outputs[i].size() == expected, "securefabric::all_gather: invalid output tensor ",
                "list at index ", i, " (expected length ", expected, ", got ", outputs[i].size(),
                ")");
  }
  if (inputs.size() > 1) {
    check_list(kOp, inputs, inputs.front(), /*same_size=*/true);
    for (const auto& list : outputs) check_list(kOp, list, inputs.front(), /*same_size=*/true);
  }
  CallBuilder call = begin(kOp, c10d::OpType::ALLGATHER, opts.timeout, opts.asyncOp);
  TensorLists own = outputs;
  for (auto& list : own) {
    for (size_t at = 0; at < expected; ++at)
      list[at] = call.own_output(list[at], at % inputs.size());
  }
  for (size_t i = 0; i < inputs.size(); ++i) {
    std::vector<at::Tensor> of_input;
    for (size_t at = i; at < expected; at += inputs.size()) of_input.push_back(own[0][at]);
    Part& part = add_all_gather(call, of_input, call.own_input(inputs[i], i));
    for (size_t copy = 1; copy < own.size(); ++copy) {
      for (size_t rank = 0; rank < of_input.size(); ++rank) {
        part.table.copy_result(part.outputs[rank], own[copy][rank * inputs.size() + i]);
      }
    }
    call.profile(inputs[i]);
  }
  call.yield_lists(outputs);
  return issue(std::move(call));
}

Works Backend::_allgather_base(at::Tensor& output, at::Tensor& input,
                               const c10d::AllgatherOptions& opts) {
  CallBuilder call =
      begin("all_gather_into_tensor", c10d::OpType::_ALLGATHER_BASE, opts.timeout, opts.asyncOp);
  add_all_gather_base(call, output, input);
  call.profile(input);
  call.yield_new_versions({output});
  return issue(std::move(call));
}

// `outputs` has a list per rank, each with one tensor per input.
Works Backend::allgather_coalesced(std::vector<std::vector<at::Tensor>>& outputs,
                                   std::vector<at::Tensor>& inputs,
                                   const c10d::AllgatherOptions& opts) {
  constexpr const char* kOp = "all_gather";
  check_any_input(kOp, inputs);
  check_lists_of_ranks(kOp, outputs, inputs.size(), size_);
  CallBuilder call = begin(kOp, c10d::OpType::ALLGATHER_COALESCED, opts.timeout, opts.asyncOp);
  TensorLists own = outputs;
  for (auto& of_rank : own) {
    for (size_t i = 0; i < inputs.size(); ++i) of_rank[i] = call.own_output(of_rank[i], i);
  }
  for (size_t i = 0; i < inputs.size(); ++i) {
    std::vector<at::Tensor> of_input;
    for (const auto& of_rank : own) of_input.push_back(of_rank[i]);
    add_all_gather(call, of_input, call.own_input(inputs[i], i));
    call.profile(inputs[i]);
  }
  call.yield_lists(outputs);
  return issue(std::move(call));
}

Works Backend::allgather_into_tensor_coalesced(std::vector<at::Tensor>& outputs,
                                               std::vector<at::Tensor>& inputs,
                                               const c10d::AllgatherOptions& opts) {
  constexpr const char* kOp = "all_gather_into_tensor";
  check_pairs(kOp, outputs.size(), inputs.size());
  CallBuilder call = begin(kOp, c10d::OpType::COALESCED, opts.timeout, opts.asyncOp);
  const std::vector<at::Tensor> own = own_outputs(call, outputs);
  for (size_t i = 0; i < inputs.size(); ++i) {
    add_all_gather_base(call, own[i], call.own_input(inputs[i], i));
    call.profile(inputs[i]);
  }
  call.yield_new_versions(outputs);
  return issue(std::move(call));
}

Works Backend::gather(std::vector<std::vector<at::Tensor>>& outputs,
                      std::vector<at::Tensor>& inputs, const c10d::GatherOptions& opts) {
  constexpr const char* kOp = "gather";
  c10d::assertRootRank(refuse(kOp), opts.rootRank, size_);
  check_single_input(kOp, inputs);
  const at::Tensor& input = inputs.front();
  CallBuilder call = begin(kOp, c10d::OpType::GATHER, opts.timeout, opts.asyncOp);
  Part part = call.make_part(OperationKind::kGather, input, elements_of(input));
  part.root = static_cast<uint32_t>(opts.rootRank);
  if (rank_ == opts.rootRank) {
    check_list_of_root(kOp, Side::kOutput, outputs, size_);
    check_list(kOp, outputs.front(), input, /*same_size=*/true);
    for (const at::Tensor& output : outputs.front()) {
      part.outputs.push_back(part.table.add_output(call.own_output(output, 0)));
    }
    part.inputs = {part.table.add_aliasing_input(input, part.outputs[static_cast<size_t>(rank_)])};
    call.yield_new_versions(outputs.front());
  } else {
    check_no_list(kOp, Side::kOutput, outputs);
    part.inputs = {part.table.add_input(input)};
  }
  call.add(std::move(part));
  call.profile(input);
  return issue(std::move(call));
}

Works Backend::scatter(std::vector<at::Tensor>& outputs,
                       std::vector<std::vector<at::Tensor>>& inputs,
                       const c10d::ScatterOptions& opts) {
  constexpr const char* kOp = "scatter";
  c10d::assertRootRank(refuse(kOp), opts.rootRank, size_);
  check_single_output(kOp, outputs);
  const at::Tensor& output = outputs.front();
  CallBuilder call = begin(kOp, c10d::OpType::SCATTER, opts.timeout, opts.asyncOp);
  Part part = call.make_part(OperationKind::kScatter, output, elements_of(output));
  part.root = static_cast<uint32_t>(opts.rootRank);
  part.outputs = {part.table.add_output(output)};
  if (rank_ == opts.rootRank) {
    check_list_of_root(kOp, Side::kInput, inputs, size_);
    check_list(kOp, inputs.front(), output, /*same_size=*/true);
    for (int i = 0; i < size_; ++i) {
      const at::Tensor& input = inputs.front()[static_cast<size_t>(i)];
      part.inputs.push_back(i == rank_ ? part.table.add_aliasing_input(input, part.outputs.front())
                                       : part.table.add_disjoint_input(input));
      call.profile(input);
    }
  } else {
    check_no_list(kOp, Side::kInput, inputs);
  }
  call.add(std::move(part));
  call.yield(outputs);
  return issue(std::move(call));
}

Works Backend::reduce_scatter(std::vector<at::Tensor>& outputs,
                              std::vector<std::vector<at::Tensor>>& inputs,
                              const c10d::ReduceScatterOptions& opts) {
  constexpr const char* kOp = "reduce_scatter";
  check_single_output(kOp, outputs);
  const at::Tensor& output = outputs.front();
  check_list_of_root(kOp, Side::kInput, inputs, size_);
  check_list(kOp, inputs.front(), output, /*same_size=*/false);
  const auto own = static_cast<size_t>(rank_);
  if (inputs.front()[own].numel() != output.numel()) {
    c10d::assertSizesMatch(refuse(kOp), output.sizes(), inputs.front(), own);
  }
  CallBuilder call = begin(kOp, c10d::OpType::REDUCE_SCATTER, opts.timeout, opts.asyncOp);
  Part part = call.make_part(OperationKind::kReduceScatter, output, total_elements(inputs.front()));
  part.reduction = reduction_of(kOp, opts.reduceOp, output);
  part.outputs = {part.table.add_output(output)};
  for (size_t i = 0; i < inputs.front().size(); ++i) {
    const at::Tensor& input = inputs.front()[i];
    part.inputs.push_back(i == own ? part.table.add_aliasing_input(input, part.outputs.front())
                                   : part.table.add_disjoint_input(input));
    call.profile(input);
  }
  call.add(std::move(part));
  call.yield_new_versions(outputs);
  return issue(std::move(call));
}

void Backend::add_reduce_scatter_base(CallBuilder& call, const at::Tensor& output,
                                      const at::Tensor& input, const c10d::ReduceOp& op) const {
  check_tensor(call.name(), output);
  check_list(call.name(), {input}, output, /*same_size=*/false);
  TORCH_CHECK(input.numel() == output.numel() * size_, "securefabric::", call.name(),
              ": input tensor must be the same size as output size times world size (",
              input.numel(), " is not ", size_, " x ", output.numel(), ")");
  Part part = call.make_part(OperationKind::kReduceScatter, output, elements_of(input));
  part.reduction = reduction_of(call.name(), op, output);
  part.outputs = {part.table.add_output(output)};
  // The output may be this rank's own piece of the input, exactly; that overlap is planned for.
  const Region whole = part.table.add_shared_input(input, part.outputs.front(),
                                                   static_cast<uint64_t>(rank_) * output.nbytes());
  part.inputs = split_evenly(whole, size_);
  const Region& own = part.inputs[static_cast<size_t>(rank_)];
  if (part.table.is_same_memory(own, part.outputs.front())) part.outputs = {own};
  call.add(std::move(part));
}

Works Backend::_reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                                    const c10d::ReduceScatterOptions& opts) {
  CallBuilder call = begin("reduce_scatter_tensor", c10d::OpType::_REDUCE_SCATTER_BASE,
                           opts.timeout, opts.asyncOp);
  add_reduce_scatter_base(call, output, input, opts.reduceOp);
  call.profile(input);
  call.yield_new_versions({output});
  return issue(std::move(call));
}

Works Backend::reduce_scatter_tensor_coalesced(std::vector<at::Tensor>& outputs,
                                               std::vector<at::Tensor>& inputs,
                                               const c10d::ReduceScatterOptions& opts) {
  constexpr const char* kOp = "reduce_scatter_tensor";
  check_pairs(kOp, outputs.size(), inputs.size());
  CallBuilder call = begin(kOp, kReduceScatterTensorCoalesced, opts.timeout, opts.asyncOp);
  const std::vector<at::Tensor> own = own_outputs(call, outputs);
  for (size_t i = 0; i < inputs.size(); ++i) {
    add_reduce_scatter_base(call, own[i], call.own_input(inputs[i], i), opts.reduceOp);
    call.profile(inputs[i]);
  }
  call.yield_new_versions(outputs);
  return issue(std::move(call));
}

Works Backend::alltoall_base(at::Tensor& output, at::Tensor& input,
                             std::vector<int64_t>& output_splits,
                             std::vector<int64_t>& input_splits,
                             const c10d::AllToAllOptions& opts) {
  constexpr const char* kOp = "all_to_all";
  check_tensor(kOp, input);
  check_list(kOp, {output}, input, /*same_size=*/false);
  CallBuilder call = begin(kOp, c10d::OpType::ALLTOALL_BASE, opts.timeout, opts.asyncOp);
  Part part = call.make_part(OperationKind::kAllToAll, input, 0);
  const Region out = part.table.add_output(output);
  part.outputs = split_rows(kOp, out, output, output_splits, size_);
  part.inputs = split_rows(kOp, part.table.add_disjoint_input(input), input, input_splits, size_);
  check_own(kOp, part.inputs, part.outputs, rank_);
  call.add(std::move(part));
  call.profile(input);
  call.yield(output);
  return issue(std::move(call));
}

Works Backend::alltoall(std::vector<at::Tensor>& outputs, std::vector<at::Tensor>& inputs,
                        const c10d::AllToAllOptions& opts) {
  constexpr const char* kOp = "all_to_all";
  check_one_per_rank(kOp, Side::kInput, inputs, size_);
  check_one_per_rank(kOp, Side::kOutput, outputs, size_);
  check_list(kOp, inputs, inputs.front(), /*same_size=*/false);
  check_list(kOp, outputs, inputs.front(), /*same_size=*/false);
  CallBuilder call = begin(kOp, c10d::OpType::ALLTOALL, opts.timeout, opts.asyncOp);
  Part part = call.make_part(OperationKind::kAllToAll, inputs.front(), 0);
  for (const at::Tensor& output : outputs) {
    part.outputs.push_back(part.table.add_output(call.own_output(output, 0)));
  }
  for (const at::Tensor& input : inputs) {
    part.inputs.push_back(part.table.add_disjoint_input(input));
    call.profile(input);
  }
  check_own(kOp, part.inputs, part.outputs, rank_);
  call.add(std::move(part));
  call.yield_new_versions(outputs);
  return issue(std::move(call));
}

}  // namespace securefabric::torch_room
