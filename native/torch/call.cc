#include "torch/call.h"

#include "net/clock.h"

namespace securefabric::torch_room {

using base::Duration;
using base::Instant;
using collective::OperationKind;
using collective::ReduceOp;

namespace {

ReduceOp to_core(c10d::ReduceOp::RedOpType op) {
  switch (op) {
    case c10d::ReduceOp::SUM: return ReduceOp::kSum;
    case c10d::ReduceOp::AVG: return ReduceOp::kAvg;
    case c10d::ReduceOp::PRODUCT: return ReduceOp::kProduct;
    case c10d::ReduceOp::MIN: return ReduceOp::kMin;
    case c10d::ReduceOp::MAX: return ReduceOp::kMax;
    case c10d::ReduceOp::BAND: return ReduceOp::kBitAnd;
    case c10d::ReduceOp::BOR: return ReduceOp::kBitOr;
    case c10d::ReduceOp::BXOR: return ReduceOp::kBitXor;
    case c10d::ReduceOp::PREMUL_SUM: return ReduceOp::kPremulSum;
    default: return ReduceOp::kNone;
  }
}

double factor_of(const char* name, const c10d::ReduceOp& op) {
  const auto* supplement = dynamic_cast<c10d::PreMulSumSupplement*>(op.supplement_.get());
  TORCH_CHECK(supplement != nullptr, "securefabric::", name, ": PREMUL_SUM without its factor");
  if (!supplement->tensor_factor.defined()) return supplement->double_factor;
  return supplement->tensor_factor.item<double>();
}

}  // namespace

Reduction reduction_of(const char* name, const c10d::ReduceOp& op, const at::Tensor& tensor) {
  Reduction reduction;
  reduction.op = to_core(op.op_);
  TORCH_CHECK(reduction.op != ReduceOp::kNone, "securefabric::", name, ": unknown reduce op");
  const collective::DataType type = data_type_of(tensor);
  TORCH_CHECK(type != collective::DataType::kByte &&
                  collective::find_reduce_kernel(type, reduction.op) != nullptr,
              "securefabric::", name, ": ", collective::reduce_op_name(reduction.op),
              " is not defined on ", tensor.scalar_type(), " tensors");
  if (reduction.op == ReduceOp::kPremulSum) reduction.premul_factor = factor_of(name, op);
  return reduction;
}

Part make_part(OperationKind kind, const at::Tensor& tensor, uint64_t count) {
  Part part;
  part.kind = kind;
  part.data_type = data_type_of(tensor);
  part.element_bytes = static_cast<uint32_t>(tensor.element_size());
  part.count = count;
  return part;
}

std::shared_ptr<collective::Operation> CallBuilder::make_operation(
    Part& part, const std::shared_ptr<collective::Group>& group, Instant deadline) const {
  collective::OperationRequest request;
  request.group = group;
  request.kind = part.kind;
  request.data_type = part.data_type;
  request.reduce_op = part.reduction.op;
  request.premul_factor = part.reduction.premul_factor;
  request.count = part.count;
  request.tag = part.tag;
  request.buffers = part.table.buffers();
  request.deadline = deadline;

  collective::CollectiveRequest wanted;
  wanted.kind = part.kind;
  wanted.reduce_op = part.reduction.op;
  wanted.element_bytes = part.element_bytes;
  wanted.rank = group->rank;
  wanted.size = group->size();
  wanted.root = part.root;
  wanted.inputs = part.inputs;
  wanted.outputs = part.outputs;
  wanted.scratch_buffer = static_cast<uint32_t>(request.buffers.size());
  request.schedule = collective::plan(wanted);
  // The peer of send and receive differs on the two ends, so it is no part of the signature.
  const bool is_point_to_point =
      part.kind == OperationKind::kSend || part.kind == OperationKind::kReceive;
  if (!is_point_to_point) request.root = part.root;
  return std::make_shared<collective::Operation>(std::move(request));
}

c10::intrusive_ptr<Work> CallBuilder::start(const std::shared_ptr<net::Fabric>& fabric,
                                            const std::shared_ptr<collective::Group>& group,
                                            uint64_t sequence) && {
  const Instant deadline = net::now() + Duration::millis(timeout_.count());
  std::vector<std::shared_ptr<collective::Operation>> operations;
  Work::Call call;
  for (Part& part : parts_) {
    operations.push_back(make_operation(part, group, deadline));
    operations.back()->is_synchronous = !is_async_ && parts_.size() == 1;
    call.tables.push_back(std::move(part.table));
  }
  call.fabric = fabric;
  call.group = group;
  call.type = type_;
  call.title = std::move(title_);
  call.profiled = std::move(profiled_);
  call.results = std::move(results_);
  call.sequence = sequence;
  auto work = c10::make_intrusive<Work>(static_cast<int>(group->rank), std::move(call));
  work->expect(operations.size());
  for (const auto& operation : operations) work->start(operation);
  return work;
}

}  // namespace securefabric::torch_room
