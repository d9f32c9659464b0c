// Builds one call: its tensors, its operations, its Work.
//
// A call has a part for each of its tensors (several when coalesced, or when a tensor is staged in
// pieces), and a part an operation, or several when it is large enough to be cut into stripes, one
// for each engine.
#pragma once

#include <torch/csrc/distributed/c10d/Types.hpp>

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "collective/operation.h"
#include "collective/plan.h"
#include "torch/claims.h"
#include "torch/group_context.h"
#include "torch/issue_queue.h"
#include "torch/tensors.h"
#include "torch/work.h"

namespace securefabric::torch_room {

// How a reduction is done, from torch's ReduceOp.
struct Reduction {
  collective::ReduceOp op = collective::ReduceOp::kNone;
  double premul_factor = 1.0;  // kPremulSum
};

// Throws when `op` is not defined on the type of `tensor`, naming both.
Reduction reduction_of(const char* name, const c10d::ReduceOp& op, const at::Tensor& tensor);

// One tensor of a call, before it is planned.
struct Part {
  collective::OperationKind kind = collective::OperationKind::kBarrier;
  Reduction reduction = {};
  collective::DataType data_type = collective::DataType::kByte;
  uint32_t element_bytes = 1;
  uint64_t count = 0;  // elements of the whole operation; equal on all ranks, or 0
  uint32_t root = 0;   // group rank; the peer of send and receive
  uint32_t tag = 0;    // send and receive
  TensorTable table = TensorTable();
  std::vector<collective::Region> inputs = {};
  std::vector<collective::Region> outputs = {};
};

class CallBuilder {
 public:
  // The profiler shows the call as "presented_name:name". One without a name (null) is a part of
  // another call: the profiler does not see it, and it is no work of the group's ledger.
  CallBuilder(std::shared_ptr<const GroupContext> context, const char* name, c10d::OpType type,
              std::chrono::milliseconds timeout, bool is_async)
      : context_(std::move(context)),
        name_(name),
        type_(type),
        timeout_(timeout),
        is_async_(is_async) {}

  const char* name() const { return name_; }
  // A part that moves or reduces elements like those of `tensor`; to be added when it is complete.
  Part make_part(collective::OperationKind kind, const at::Tensor& tensor, uint64_t count) const;
  // The same that moves bytes.
  Part make_message(collective::OperationKind kind, uint32_t peer, uint32_t tag,
                    uint64_t bytes) const;
  // A tensor that has to be copied to host memory first is cut into pieces, of which one travels
  // while the next is copied; others stay whole. The pieces are the same on all ranks. What is
  // written to them is written to the tensor, if `is_written`.
  std::vector<at::Tensor> pieces_of(const at::Tensor& tensor, bool is_written);
  // Of a call with several results: where a part of it writes one of them, in the order of results
  // and before any own_input. One that overlaps an earlier one gets memory of its own, from which
  // it is copied in the end: the last one counts, as if all were copied.
  at::Tensor own_output(const at::Tensor& tensor, size_t part);
  // The same of a tensor that is read as well: what it holds now.
  at::Tensor own_in_out(const at::Tensor& tensor, size_t part);
  // Where a part reads: a copy of what it holds now, where another part writes to it.
  at::Tensor own_input(const at::Tensor& tensor, size_t part) const;
  Part& add(Part part) { return parts_.emplace_back(std::move(part)); }
  // Shapes for the profiler, and the value of the future.
  void profile(const at::Tensor& tensor) { profiled_.push_back(tensor); }
  void yield(const at::Tensor& tensor) { results_.push_back(tensor); }
  void yield(const std::vector<at::Tensor>& tensors) {
    results_.insert(results_.end(), tensors.begin(), tensors.end());
  }
  // Tells autograd that what it has saved of a tensor is overwritten, which it cannot see by
  // itself: in the operations in which Gloo's users can rely on it, since Gloo copies their
  // results.
  void count_version(const at::Tensor& tensor) { new_versions_.push_back(tensor); }
  void yield_new_versions(const std::vector<at::Tensor>& tensors) {
    yield(tensors);
    new_versions_.insert(new_versions_.end(), tensors.begin(), tensors.end());
  }
  // The future has lists of as many tensors each; the list itself, where there is only one.
  void yield_lists(const std::vector<std::vector<at::Tensor>>& lists) {
    for (const auto& list : lists) yield_new_versions(list);
    results_per_list_ = lists.size() > 1 ? lists.front().size() : 0;
  }

  // Its one operation begins when the group's earlier collectives have ended.
  void wait_for_earlier() { waits_for_earlier_ = true; }

  // Plans and starts every part, in order with the other calls of the group: one call at a time.
  // `sequence` is what the Work calls its number.
  c10::intrusive_ptr<Work> start(uint64_t sequence) &&;

 private:
  collective::CollectiveRequest request_of(const Part& part) const;
  std::shared_ptr<collective::Operation> make_operation(const Part& part,
                                                        collective::CollectiveRequest wanted,
                                                        uint32_t engine,
                                                        std::optional<uint64_t> sequence,
                                                        base::Instant deadline) const;
  void hold_back(const std::shared_ptr<Phase>& earlier,
                 const std::shared_ptr<collective::Operation>& operation) const;
  bool is_staged(const at::Tensor& tensor) const {
    return context_->stages_host_tensors || !tensor.is_cpu();
  }

  std::shared_ptr<const GroupContext> context_;
  const char* name_;
  c10d::OpType type_;
  std::chrono::milliseconds timeout_;
  bool is_async_;
  bool waits_for_earlier_ = false;
  std::vector<Part> parts_;
  Claims claims_;
  std::vector<CopyBack> copies_back_;
  std::vector<at::Tensor> profiled_;
  std::vector<at::Tensor> results_;
  size_t results_per_list_ = 0;
  std::vector<at::Tensor> new_versions_;
};

}  // namespace securefabric::torch_room
