#include "torch/backend.h"

#include <Python.h>

#include <algorithm>

#include "crypto/secret.h"
#include "torch/errors.h"

namespace securefabric::torch_room {

using base::Duration;
using base::Error;
using base::ErrorCode;
using base::Instant;
using collective::OperationKind;
using collective::Region;
using Works = c10::intrusive_ptr<c10d::Work>;

namespace {

constexpr Duration kDrainLimit = Duration::seconds(5);

void check_root(const char* name, int64_t root, int size) {
  TORCH_CHECK(root >= 0 && root < size, "securefabric::", name, ": invalid root rank: ", root);
}

void check_single(const char* name, const std::vector<at::Tensor>& tensors) {
  TORCH_CHECK(!tensors.empty(), "securefabric::", name, ": requires non-empty tensor list");
  TORCH_CHECK(tensors.size() == 1, "securefabric::", name,
              ": requires a single-element tensor list, got ", tensors.size());
  check_tensor(name, tensors.front());
}

// Every tensor of a list has the type of `like`; with `same_size` also its number of elements.
void check_list(const char* name, const std::vector<at::Tensor>& tensors, const at::Tensor& like,
                bool same_size) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    check_tensor(name, tensors[i]);
    TORCH_CHECK(tensors[i].scalar_type() == like.scalar_type(), "securefabric::", name,
                ": invalid tensor type at index ", i, " (expected ", like.scalar_type(), ", got ",
                tensors[i].scalar_type(), ")");
    TORCH_CHECK(!same_size || tensors[i].numel() == like.numel(), "securefabric::", name,
                ": invalid tensor size at index ", i, " (expected ", like.sizes(), ", got ",
                tensors[i].sizes(), ")");
  }
}

void check_ranks(const char* name, const char* what, size_t count, int size) {
  TORCH_CHECK(count == static_cast<size_t>(size), "securefabric::", name, ": ", what, " has ",
              count, " tensors, the group has ", size, " ranks");
}

uint64_t total_elements(const std::vector<at::Tensor>& tensors) {
  uint64_t count = 0;
  for (const at::Tensor& tensor : tensors) count += static_cast<uint64_t>(tensor.numel());
  return count;
}

// Equal pieces of a whole, one per rank.
std::vector<Region> split_evenly(const Region& whole, int size) {
  std::vector<Region> pieces;
  const uint64_t length = whole.length / static_cast<uint64_t>(size);
  for (int i = 0; i < size; ++i) {
    pieces.push_back({whole.buffer, whole.offset + static_cast<uint64_t>(i) * length, length});
  }
  return pieces;
}

// Pieces of `splits[i]` rows of dimension 0; even ones when there are no splits.
std::vector<Region> split_rows(const char* name, const Region& whole, const at::Tensor& tensor,
                               const std::vector<int64_t>& splits, int size) {
  const int64_t rows = tensor.dim() == 0 ? 1 : tensor.size(0);
  if (splits.empty()) {
    TORCH_CHECK(rows % size == 0, "securefabric::", name, ": dimension 0 (", rows,
                ") is not divisible by the group's size (", size, ")");
    return split_evenly(whole, size);
  }
  check_ranks(name, "the split list", splits.size(), size);
  int64_t sum = 0;
  for (const int64_t split : splits) {
    TORCH_CHECK(split >= 0, "securefabric::", name, ": negative split size ", split);
    sum += split;
  }
  TORCH_CHECK(sum == rows, "securefabric::", name, ": the split sizes add up to ", sum,
              ", dimension 0 is ", rows);
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

}  // namespace

c10::intrusive_ptr<Backend::Options> Backend::Options::copy_of(const Options& other) {
  auto copy = c10::make_intrusive<Options>(other.timeout, other.backend);
  copy->group_name = other.group_name;
  copy->group_desc = other.group_desc;
  copy->global_ranks_in_group = other.global_ranks_in_group;
  copy->use_pg_for_symm_mem_rendezvous = other.use_pg_for_symm_mem_rendezvous;
  return copy;
}

// --- Life --------------------------------------------------------------------------------------

Backend::Backend(std::shared_ptr<net::Fabric> fabric, int rank, int size,
                 const std::string& group_name, const std::string& group_key,
                 const std::vector<int64_t>& global_ranks, c10::intrusive_ptr<Options> options,
                 bool eager_connect)
    : c10d::Backend(rank, size), fabric_(std::move(fabric)), options_(std::move(options)) {
  TORCH_CHECK(global_ranks.size() == static_cast<size_t>(size), "group ", group_name, " has ", size,
              " ranks, but ", global_ranks.size(), " global ranks were given");
  std::vector<base::Rank> ranks;
  for (const int64_t global : global_ranks) {
    ranks.push_back(base::Rank{static_cast<uint32_t>(global)});
    options_->global_ranks_in_group.push_back(static_cast<uint64_t>(global));
  }
  options_->group_name = group_name;
  group_ = value_or_throw(fabric_->add_group(group_key, group_name, static_cast<uint32_t>(rank),
                                             std::move(ranks), eager_connect));
  init();
}

Backend::~Backend() {
  if (crypto::forked_child()) return;
  // The last reference may go away on a thread that holds the GIL, while the thread that has the
  // engine may be waiting for it in a callback.
  PyThreadState* saved = PyGILState_Check() != 0 ? PyEval_SaveThread() : nullptr;
  fabric_->remove_group(group_, std::nullopt);
  if (saved != nullptr) PyEval_RestoreThread(saved);
}

void Backend::abort() {
  if (crypto::forked_child()) return;
  const Error error{ErrorCode::kAborted, "abort() was called on rank " +
                                             std::to_string(group_->ranks[group_->rank].value) +
                                             " of process group '" + group_->name + "'"};
  (void)fabric_->driver().run(
      [&](collective::Engine& engine, Instant now) { engine.abort_group(*group_, error, now); });
}

void Backend::shutdown() {
  if (crypto::forked_child() || is_shut_down_.exchange(true)) return;
  // What this rank has sent must arrive: others may still be in the operation that is over here.
  if (getError() == c10d::ErrorType::SUCCESS) fabric_->driver().drain(kDrainLimit);
  fabric_->remove_group(group_, std::nullopt);
}

c10d::ErrorType Backend::getError() {
  std::optional<Error> broken;
  const base::Status status =
      fabric_->driver().run([&](collective::Engine&, Instant) { broken = group_->broken; });
  if (!status) return c10d::ErrorType::COMM_ERROR;
  if (!broken) return c10d::ErrorType::SUCCESS;
  switch (broken->code) {
    case ErrorCode::kTimeout: return c10d::ErrorType::TIMEOUT;
    case ErrorCode::kPeerLost:
    case ErrorCode::kAborted: return c10d::ErrorType::REMOTE_ERROR;
    default: return c10d::ErrorType::COMM_ERROR;
  }
}

CallBuilder Backend::begin(const char* name, c10d::OpType type, std::chrono::milliseconds timeout,
                           bool is_async) const {
  return {options_->backend, name, type,
          timeout == c10d::kUnsetTimeout ? options_->timeout : timeout, is_async};
}

Works Backend::issue(CallBuilder builder) {
  const std::lock_guard<std::mutex> lock(issue_mutex_);
  const uint64_t sequence = sequence_.fetch_add(1) + 1;
  Works work = std::move(builder).start(fabric_, group_, sequence);
  if (is_coalescing_) coalesced_.push_back(work);
  return work;
}

void Backend::startCoalescing() {
  const std::lock_guard<std::mutex> lock(issue_mutex_);
  is_coalescing_ = true;
}

Works Backend::endCoalescing() {
  const std::lock_guard<std::mutex> lock(issue_mutex_);
  is_coalescing_ = false;
  return c10::make_intrusive<CoalescedWork>(rank_, std::exchange(coalesced_, {}));
}

// --- Collectives -------------------------------------------------------------------------------

Works Backend::broadcast(std::vector<at::Tensor>& tensors, const c10d::BroadcastOptions& opts) {
  constexpr const char* kOp = "broadcast";
  check_root(kOp, opts.rootRank, size_);
  check_single(kOp, tensors);
  TORCH_CHECK(opts.rootTensor == 0,
              "securefabric::broadcast: invalid root tensor: ", opts.rootTensor);
  const at::Tensor& tensor = tensors.front();
  CallBuilder call = begin(kOp, c10d::OpType::BROADCAST, opts.timeout, opts.asyncOp);
  Part part = make_part(OperationKind::kBroadcast, tensor, static_cast<uint64_t>(tensor.numel()));
  part.root = static_cast<uint32_t>(opts.rootRank);
  // The root only reads: its tensor may be an expanded view that nobody can write to.
  const Region region =
      rank_ == opts.rootRank ? part.table.add_input(tensor) : part.table.add_output(tensor);
  if (rank_ == opts.rootRank) part.inputs = {region};
  part.outputs = {region};
  call.add(std::move(part));
  call.profile(tensor);
  call.yield(tensors);
  return issue(std::move(call));
}

namespace {

Part all_reduce_part(const char* name, const at::Tensor& tensor, const c10d::ReduceOp& op) {
  Part part = make_part(OperationKind::kAllReduce, tensor, static_cast<uint64_t>(tensor.numel()));
  part.reduction = reduction_of(name, op, tensor);
  part.inputs = {part.table.add_in_out(tensor)};
  part.outputs = part.inputs;
  return part;
}

}  // namespace

Works Backend::allreduce(std::vector<at::Tensor>& tensors, const c10d::AllreduceOptions& opts) {
  constexpr const char* kOp = "all_reduce";
  check_single(kOp, tensors);
  CallBuilder call = begin(kOp, c10d::OpType::ALLREDUCE, opts.timeout, opts.asyncOp);
  call.add(all_reduce_part(kOp, tensors.front(), opts.reduceOp));
  call.profile(tensors.front());
  call.yield(tensors);
  return issue(std::move(call));
}

Works Backend::allreduce_coalesced(std::vector<at::Tensor>& tensors,
                                   const c10d::AllreduceCoalescedOptions& opts) {
  constexpr const char* kOp = "all_reduce";
  TORCH_CHECK(!tensors.empty(), "securefabric::all_reduce: requires non-empty tensor list");
  CallBuilder call = begin(kOp, c10d::OpType::ALLREDUCE_COALESCED, opts.timeout, opts.asyncOp);
  for (const at::Tensor& tensor : tensors) {
    check_tensor(kOp, tensor);
    call.add(all_reduce_part(kOp, tensor, opts.reduceOp));
    call.profile(tensor);
  }
  call.yield(tensors);
  return issue(std::move(call));
}

Works Backend::reduce(std::vector<at::Tensor>& tensors, const c10d::ReduceOptions& opts) {
  constexpr const char* kOp = "reduce";
  check_root(kOp, opts.rootRank, size_);
  check_single(kOp, tensors);
  const at::Tensor& tensor = tensors.front();
  CallBuilder call = begin(kOp, c10d::OpType::REDUCE, opts.timeout, opts.asyncOp);
  Part part = make_part(OperationKind::kReduce, tensor, static_cast<uint64_t>(tensor.numel()));
  part.root = static_cast<uint32_t>(opts.rootRank);
  part.reduction = reduction_of(kOp, opts.reduceOp, tensor);
  const bool is_root = rank_ == opts.rootRank;
  part.inputs = {is_root ? part.table.add_in_out(tensor) : part.table.add_input(tensor)};
  if (is_root) part.outputs = part.inputs;
  call.add(std::move(part));
  call.profile(tensor);
  call.yield(tensors);
  return issue(std::move(call));
}

void Backend::add_all_gather(CallBuilder& call, const std::vector<at::Tensor>& outputs,
                             const at::Tensor& input) const {
  check_ranks(call.name(), "the output list", outputs.size(), size_);
  check_tensor(call.name(), input);
  check_list(call.name(), outputs, input, /*same_size=*/false);
  const auto own = static_cast<size_t>(rank_);
  TORCH_CHECK(outputs[own].numel() == input.numel(), "securefabric::", call.name(),
              ": invalid tensor size at index ", own, " (expected ", input.sizes(), ", got ",
              outputs[own].sizes(), ")");
  Part part = make_part(OperationKind::kAllGather, input, total_elements(outputs));
  for (const at::Tensor& output : outputs) part.outputs.push_back(part.table.add_output(output));
  part.inputs = {part.table.add_aliasing_input(input, part.outputs[own])};
  call.add(std::move(part));
}

void Backend::add_all_gather_base(CallBuilder& call, const at::Tensor& output,
                                  const at::Tensor& input) const {
  check_tensor(call.name(), input);
  check_list(call.name(), {output}, input, /*same_size=*/false);
  TORCH_CHECK(output.numel() == input.numel() * size_, "securefabric::", call.name(),
              ": output tensor size must be equal to world_size times input tensor size (",
              output.numel(), " is not ", size_, " x ", input.numel(), ")");
  Part part = make_part(OperationKind::kAllGather, input, static_cast<uint64_t>(output.numel()));
  part.outputs = split_evenly(part.table.add_output(output), size_);
  part.inputs = {part.table.add_aliasing_input(input, part.outputs[static_cast<size_t>(rank_)])};
  call.add(std::move(part));
}

Works Backend::allgather(std::vector<std::vector<at::Tensor>>& outputs,
                         std::vector<at::Tensor>& inputs, const c10d::AllgatherOptions& opts) {
  constexpr const char* kOp = "all_gather";
  check_single(kOp, inputs);
  TORCH_CHECK(outputs.size() == 1,
              "securefabric::all_gather: requires a single-element output "
              "list containing a list of tensors, got ",
              outputs.size());
  CallBuilder call = begin(kOp, c10d::OpType::ALLGATHER, opts.timeout, opts.asyncOp);
  add_all_gather(call, outputs.front(), inputs.front());
  call.profile(inputs.front());
  call.yield(outputs.front());
  return issue(std::move(call));
}

Works Backend::_allgather_base(at::Tensor& output, at::Tensor& input,
                               const c10d::AllgatherOptions& opts) {
  CallBuilder call =
      begin("all_gather_into_tensor", c10d::OpType::_ALLGATHER_BASE, opts.timeout, opts.asyncOp);
  add_all_gather_base(call, output, input);
  call.profile(input);
  call.yield(output);
  return issue(std::move(call));
}

// `outputs` has a list per rank, each with one tensor per input.
Works Backend::allgather_coalesced(std::vector<std::vector<at::Tensor>>& outputs,
                                   std::vector<at::Tensor>& inputs,
                                   const c10d::AllgatherOptions& opts) {
  constexpr const char* kOp = "all_gather";
  TORCH_CHECK(!inputs.empty(), "securefabric::all_gather: requires non-empty tensor list");
  check_ranks(kOp, "the output list", outputs.size(), size_);
  CallBuilder call = begin(kOp, c10d::OpType::ALLGATHER_COALESCED, opts.timeout, opts.asyncOp);
  for (size_t i = 0; i < inputs.size(); ++i) {
    std::vector<at::Tensor> of_input;
    for (const auto& of_rank : outputs) {
      TORCH_CHECK(of_rank.size() == inputs.size(), "securefabric::all_gather: an output list has ",
                  of_rank.size(), " tensors for ", inputs.size(), " inputs");
      of_input.push_back(of_rank[i]);
    }
    add_all_gather(call, of_input, inputs[i]);
    call.profile(inputs[i]);
  }
  for (const auto& of_rank : outputs) call.yield(of_rank);
  return issue(std::move(call));
}

Works Backend::allgather_into_tensor_coalesced(std::vector<at::Tensor>& outputs,
                                               std::vector<at::Tensor>& inputs,
                                               const c10d::AllgatherOptions& opts) {
  TORCH_CHECK(outputs.size() == inputs.size(),
              "securefabric::all_gather_into_tensor: ", outputs.size(), " outputs for ",
              inputs.size(), " inputs");
  CallBuilder call =
      begin("all_gather_into_tensor", c10d::OpType::COALESCED, opts.timeout, opts.asyncOp);
  for (size_t i = 0; i < inputs.size(); ++i) {
    add_all_gather_base(call, outputs[i], inputs[i]);
    call.profile(inputs[i]);
  }
  call.yield(outputs);
  return issue(std::move(call));
}

Works Backend::gather(std::vector<std::vector<at::Tensor>>& outputs,
                      std::vector<at::Tensor>& inputs, const c10d::GatherOptions& opts) {
  constexpr const char* kOp = "gather";
  check_root(kOp, opts.rootRank, size_);
  check_single(kOp, inputs);
  const at::Tensor& input = inputs.front();
  CallBuilder call = begin(kOp, c10d::OpType::GATHER, opts.timeout, opts.asyncOp);
  Part part = make_part(OperationKind::kGather, input, static_cast<uint64_t>(input.numel()));
  part.root = static_cast<uint32_t>(opts.rootRank);
  if (rank_ == opts.rootRank) {
    TORCH_CHECK(outputs.size() == 1,
                "securefabric::gather: requires a single-element output list "
                "containing a list of tensors, got ",
                outputs.size());
    check_ranks(kOp, "the output list", outputs.front().size(), size_);
    check_list(kOp, outputs.front(), input, /*same_size=*/true);
    for (const at::Tensor& output : outputs.front()) {
      part.outputs.push_back(part.table.add_output(output));
    }
    part.inputs = {part.table.add_aliasing_input(input, part.outputs[static_cast<size_t>(rank_)])};
    call.yield(outputs.front());
  } else {
    TORCH_CHECK(outputs.empty(), "securefabric::gather: requires empty output on non-root");
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
  check_root(kOp, opts.rootRank, size_);
  check_single(kOp, outputs);
  const at::Tensor& output = outputs.front();
  CallBuilder call = begin(kOp, c10d::OpType::SCATTER, opts.timeout, opts.asyncOp);
  Part part = make_part(OperationKind::kScatter, output, static_cast<uint64_t>(output.numel()));
  part.root = static_cast<uint32_t>(opts.rootRank);
  part.outputs = {part.table.add_output(output)};
  if (rank_ == opts.rootRank) {
    TORCH_CHECK(inputs.size() == 1,
                "securefabric::scatter: requires a single-element input list "
                "containing a list of tensors, got ",
                inputs.size());
    check_ranks(kOp, "the input list", inputs.front().size(), size_);
    check_list(kOp, inputs.front(), output, /*same_size=*/true);
    for (int i = 0; i < size_; ++i) {
      const at::Tensor& input = inputs.front()[static_cast<size_t>(i)];
      part.inputs.push_back(i == rank_ ? part.table.add_aliasing_input(input, part.outputs.front())
                                       : part.table.add_disjoint_input(input));
      call.profile(input);
    }
  } else {
    TORCH_CHECK(inputs.empty(), "securefabric::scatter: requires empty input on non-root");
  }
  call.add(std::move(part));
  call.yield(outputs);
  return issue(std::move(call));
}

Works Backend::reduce_scatter(std::vector<at::Tensor>& outputs,
                              std::vector<std::vector<at::Tensor>>& inputs,
                              const c10d::ReduceScatterOptions& opts) {
  constexpr const char* kOp = "reduce_scatter";
  check_single(kOp, outputs);
  const at::Tensor& output = outputs.front();
  TORCH_CHECK(inputs.size() == 1,
              "securefabric::reduce_scatter: requires a single-element input "
              "list containing a list of tensors, got ",
              inputs.size());
  check_ranks(kOp, "the input list", inputs.front().size(), size_);
  check_list(kOp, inputs.front(), output, /*same_size=*/false);
  const auto own = static_cast<size_t>(rank_);
  TORCH_CHECK(inputs.front()[own].numel() == output.numel(),
              "securefabric::reduce_scatter: invalid tensor size at index ", own, " (expected ",
              output.sizes(), ", got ", inputs.front()[own].sizes(), ")");
  CallBuilder call = begin(kOp, c10d::OpType::REDUCE_SCATTER, opts.timeout, opts.asyncOp);
  Part part = make_part(OperationKind::kReduceScatter, output, total_elements(inputs.front()));
  part.reduction = reduction_of(kOp, opts.reduceOp, output);
  part.outputs = {part.table.add_output(output)};
  for (size_t i = 0; i < inputs.front().size(); ++i) {
    const at::Tensor& input = inputs.front()[i];
    part.inputs.push_back(i == own ? part.table.add_aliasing_input(input, part.outputs.front())
                                   : part.table.add_disjoint_input(input));
    call.profile(input);
  }
  call.add(std::move(part));
  call.yield(outputs);
  return issue(std::move(call));
}

void Backend::add_reduce_scatter_base(CallBuilder& call, const at::Tensor& output,
                                      const at::Tensor& input, const c10d::ReduceOp& op) const {
  check_tensor(call.name(), output);
  check_list(call.name(), {input}, output, /*same_size=*/false);
  TORCH_CHECK(input.numel() == output.numel() * size_, "securefabric::", call.name(),
              ": input tensor must be the same size as output size times world size (",
              input.numel(), " is not ", size_, " x ", output.numel(), ")");
  Part part =
      make_part(OperationKind::kReduceScatter, output, static_cast<uint64_t>(input.numel()));
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
  call.yield(output);
  return issue(std::move(call));
}

Works Backend::reduce_scatter_tensor_coalesced(std::vector<at::Tensor>& outputs,
                                               std::vector<at::Tensor>& inputs,
                                               const c10d::ReduceScatterOptions& opts) {
  TORCH_CHECK(outputs.size() == inputs.size(),
              "securefabric::reduce_scatter_tensor: ", outputs.size(), " outputs for ",
              inputs.size(), " inputs");
  CallBuilder call = begin("reduce_scatter_tensor", c10d::OpType::REDUCE_SCATTER_TENSOR_COALESCED,
                           opts.timeout, opts.asyncOp);
  for (size_t i = 0; i < inputs.size(); ++i) {
    add_reduce_scatter_base(call, outputs[i], inputs[i], opts.reduceOp);
    call.profile(inputs[i]);
  }
  call.yield(outputs);
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
  Part part = make_part(OperationKind::kAllToAll, input, 0);
  const Region out = part.table.add_output(output);
  part.outputs = split_rows(kOp, out, output, output_splits, size_);
  part.inputs = split_rows(kOp, part.table.add_disjoint_input(input), input, input_splits, size_);
  call.add(std::move(part));
  call.profile(input);
  call.yield(output);
  return issue(std::move(call));
}

Works Backend::alltoall(std::vector<at::Tensor>& outputs, std::vector<at::Tensor>& inputs,
                        const c10d::AllToAllOptions& opts) {
  constexpr const char* kOp = "all_to_all";
  check_ranks(kOp, "the output list", outputs.size(), size_);
  check_ranks(kOp, "the input list", inputs.size(), size_);
  check_list(kOp, inputs, inputs.front(), /*same_size=*/false);
  check_list(kOp, outputs, inputs.front(), /*same_size=*/false);
  CallBuilder call = begin(kOp, c10d::OpType::ALLTOALL, opts.timeout, opts.asyncOp);
  Part part = make_part(OperationKind::kAllToAll, inputs.front(), 0);
  for (const at::Tensor& output : outputs) part.outputs.push_back(part.table.add_output(output));
  for (const at::Tensor& input : inputs) {
    part.inputs.push_back(part.table.add_disjoint_input(input));
    call.profile(input);
  }
  call.add(std::move(part));
  call.yield(outputs);
  return issue(std::move(call));
}

Works Backend::barrier(const c10d::BarrierOptions& opts) {
  CallBuilder call = begin("barrier", c10d::OpType::BARRIER, opts.timeout, opts.asyncOp);
  call.add(Part{});
  return issue(std::move(call));
}

// --- Point to point ----------------------------------------------------------------------------

Works Backend::point_to_point(const char* name, c10d::OpType type, OperationKind kind,
                              std::vector<at::Tensor>& tensors, uint32_t peer, int tag) {
  check_single(name, tensors);
  TORCH_CHECK(tag >= 0, "securefabric::", name, ": invalid tag ", tag);
  const bool is_any = peer == collective::kAnySource;
  TORCH_CHECK(is_any || peer < static_cast<uint32_t>(size_), "securefabric::", name,
              ": invalid rank ", static_cast<int>(peer), " in a group of ", size_);
  TORCH_CHECK(peer != static_cast<uint32_t>(rank_), "securefabric::", name,
              ": a rank cannot send to itself");
  const at::Tensor& tensor = tensors.front();
  CallBuilder call = begin(name, type, c10d::kUnsetTimeout, /*is_async=*/true);
  // Bytes on both ends: sender and receiver need not use the same type, only the same size.
  Part part;
  part.kind = kind;
  part.count = tensor.nbytes();
  part.root = peer;
  part.tag = static_cast<uint32_t>(tag);
  if (kind == OperationKind::kSend) {
    part.inputs = {part.table.add_input(tensor)};
  } else {
    part.outputs = {part.table.add_output(tensor)};
  }
  call.add(std::move(part));
  call.profile(tensor);
  call.yield(tensors);
  return issue(std::move(call));
}

Works Backend::send(std::vector<at::Tensor>& tensors, int peer, int tag) {
  return point_to_point("send", c10d::OpType::SEND, OperationKind::kSend, tensors,
                        static_cast<uint32_t>(peer), tag);
}

Works Backend::recv(std::vector<at::Tensor>& tensors, int peer, int tag) {
  return point_to_point("recv", c10d::OpType::RECV, OperationKind::kReceive, tensors,
                        static_cast<uint32_t>(peer), tag);
}

Works Backend::recvAnysource(std::vector<at::Tensor>& tensors, int tag) {
  return point_to_point("recvAnySource", c10d::OpType::RECVANYSOURCE, OperationKind::kReceive,
                        tensors, collective::kAnySource, tag);
}

}  // namespace securefabric::torch_room
