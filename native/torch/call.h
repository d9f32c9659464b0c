// Builds one call: its tensors, its operations (one, or several when coalesced), its Work.
#pragma once

#include <torch/csrc/distributed/c10d/Types.hpp>

#include <chrono>
#include <string>
#include <vector>

#include "collective/operation.h"
#include "collective/plan.h"
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

// One operation of a call, before it is planned.
struct Part {
  collective::OperationKind kind = collective::OperationKind::kBarrier;
  Reduction reduction = {};
  collective::DataType data_type = collective::DataType::kByte;
  uint32_t element_bytes = 1;
  uint64_t count = 0;  // elements of the whole operation; equal on all ranks, or 0
  uint32_t root = 0;   // group rank; the peer of send and receive
  uint32_t tag = 0;    // send and receive
  TensorTable table = {};
  std::vector<collective::Region> inputs = {};
  std::vector<collective::Region> outputs = {};
};

// A part that moves or reduces elements like those of `tensor`.
Part make_part(collective::OperationKind kind, const at::Tensor& tensor, uint64_t count);

class CallBuilder {
 public:
  // Profilers show a call as "presented_name:name".
  CallBuilder(const std::string& presented_name, const char* name, c10d::OpType type,
              std::chrono::milliseconds timeout, bool is_async)
      : title_(presented_name + ':' + name),
        name_(name),
        type_(type),
        timeout_(timeout),
        is_async_(is_async) {}

  const char* name() const { return name_; }
  void add(Part part) { parts_.push_back(std::move(part)); }
  // Shapes for the profiler, and the value of the future.
  void profile(const at::Tensor& tensor) { profiled_.push_back(tensor); }
  void yield(const at::Tensor& tensor) { results_.push_back(tensor); }
  void yield(const std::vector<at::Tensor>& tensors) {
    results_.insert(results_.end(), tensors.begin(), tensors.end());
  }

  size_t size() const { return parts_.size(); }
  // Plans and starts every part; `sequence` is what the Work calls its number.
  c10::intrusive_ptr<Work> start(const std::shared_ptr<net::Fabric>& fabric,
                                 const std::shared_ptr<collective::Group>& group,
                                 uint64_t sequence) &&;

 private:
  std::shared_ptr<collective::Operation> make_operation(
      Part& part, const std::shared_ptr<collective::Group>& group, base::Instant deadline) const;

  std::string title_;
  const char* name_;
  c10d::OpType type_;
  std::chrono::milliseconds timeout_;
  bool is_async_;
  std::vector<Part> parts_;
  std::vector<at::Tensor> profiled_;
  std::vector<at::Tensor> results_;
};

}  // namespace securefabric::torch_room
