#include "torch/call.h"

#include <ATen/MemoryOverlap.h>

#include "collective/stripes.h"
#include "net/clock.h"
#include "torch/overwrite.h"
#include "torch/versions.h"

namespace securefabric::torch_room {

using base::Instant;
using collective::OperationKind;
using collective::ReduceOp;

namespace {

// Large enough for the rings to run at full speed, small enough that many are under way at once.
constexpr uint64_t kPieceBytes = 4 << 20;
// A piece is copied in a tenth of it; longer waits are for the caller's kernels, and not this
// thread's, which has signals to look after and a timeout to keep.
constexpr base::Duration kCopyPatience = base::Duration::millis(1);

bool is_point_to_point(const Part& part) {
  return part.kind == OperationKind::kSend || part.kind == OperationKind::kReceive;
}

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
  const auto* supplement = dynamic_cast<PreMulSumSupplement*>(op.supplement_.get());
  TORCH_CHECK(supplement != nullptr, "securefabric::", name, ": PREMUL_SUM without its factor");
  const at::Tensor& factor = supplement->tensor_factor;
  if (!factor.defined()) return supplement->double_factor;
  TORCH_CHECK(!factor.is_complex(), "securefabric::", name,
              ": the factor of PREMUL_SUM must be a real number, also for complex tensors; got a ",
              factor.scalar_type());
  return factor.item<double>();
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

Part CallBuilder::make_part(OperationKind kind, const at::Tensor& tensor, uint64_t count) const {
  Part part;
  part.kind = kind;
  part.data_type = data_type_of(tensor);
  part.element_bytes = static_cast<uint32_t>(tensor.element_size());
  part.count = count;
  part.table = TensorTable(context_->stages_host_tensors);
  return part;
}

Part CallBuilder::make_message(OperationKind kind, uint32_t peer, uint32_t tag,
                               uint64_t bytes) const {
  Part part;
  part.kind = kind;
  part.root = peer;
  part.tag = tag;
  part.count = bytes;
  part.table = TensorTable(context_->stages_host_tensors);
  return part;
}

std::vector<at::Tensor> CallBuilder::pieces_of(const at::Tensor& tensor, bool is_written) {
  if (!is_staged(tensor) || tensor.nbytes() <= kPieceBytes) return {tensor};
  const at::NoGradGuard no_grad;
  const at::Tensor plain = to_plain(tensor);
  if (is_written && !plain.is_same(tensor)) copies_back_.push_back({tensor, plain});
  return plain.view(-1).split(static_cast<int64_t>(kPieceBytes / tensor.element_size()));
}

at::Tensor CallBuilder::own_output(const at::Tensor& tensor, size_t part) {
  check_tensor(name_, tensor);
  if (claims_.claim(tensor, part)) return tensor;
  at::assert_no_internal_overlap(tensor);
  const at::Tensor room = at::empty(tensor.sizes(), tensor.options());
  copies_back_.push_back({tensor, room});
  return room;
}

at::Tensor CallBuilder::own_in_out(const at::Tensor& tensor, size_t part) {
  at::Tensor own = own_output(tensor, part);
  if (!own.is_same(tensor)) overwrite(own, tensor);
  return own;
}

at::Tensor CallBuilder::own_input(const at::Tensor& tensor, size_t part) const {
  check_tensor(name_, tensor);
  const at::NoGradGuard no_grad;
  return claims_.is_of_another(tensor, part) ? tensor.clone() : tensor;
}

collective::CollectiveRequest CallBuilder::request_of(const Part& part) const {
  collective::CollectiveRequest wanted;
  wanted.kind = part.kind;
  wanted.reduce_op = part.reduction.op;
  wanted.element_bytes = part.element_bytes;
  wanted.rank = context_->group().rank;
  wanted.size = context_->group().size();
  wanted.root = part.root;
  wanted.inputs = part.inputs;
  wanted.outputs = part.outputs;
  return wanted;
}

std::shared_ptr<collective::Operation> CallBuilder::make_operation(
    const Part& part, collective::CollectiveRequest wanted, uint32_t engine,
    std::optional<uint64_t> sequence, Instant deadline) const {
  collective::OperationRequest request;
  request.group = context_->groups[engine];
  request.kind = part.kind;
  request.data_type = part.data_type;
  request.reduce_op = part.reduction.op;
  request.premul_factor = part.reduction.premul_factor;
  request.count = part.count;
  request.tag = part.tag;
  request.sequence = sequence;
  request.buffers = part.table.buffers();
  request.deadline = deadline;
  wanted.scratch_buffer = static_cast<uint32_t>(request.buffers.size());
  request.schedule =
      collective::plan(wanted, context_->fabric->tuning().options_for(part.kind, wanted.size));
  // The peer of send and receive differs on the two ends, so it is no part of the signature.
  if (!is_point_to_point(part)) request.root = part.root;
  return std::make_shared<collective::Operation>(std::move(request));
}

// Until all of `earlier` has ended. The operation starts all the same, so that its deadline counts.
void CallBuilder::hold_back(const std::shared_ptr<Phase>& earlier,
                            const std::shared_ptr<collective::Operation>& operation) const {
  operation->is_held = true;
  const bool has_ended = earlier->close([context = context_, operation] {
    (void)context->fabric->driver(operation->group().engine)
        .post([operation](collective::Engine& engine, Instant now) {
          engine.release(operation, now);
        });
  });
  if (has_ended) operation->is_held = false;
}

c10::intrusive_ptr<Work> CallBuilder::start(uint64_t sequence) && {
  const Instant deadline = deadline_after(timeout_);
  std::vector<std::shared_ptr<collective::Operation>> operations;
  Work::Call call;
  const collective::StripeOptions options{static_cast<uint32_t>(context_->groups.size()),
                                          context_->stripe_bytes};
  uint64_t collectives = 0;
  for (Part& part : parts_) {
    collective::CollectiveRequest whole = request_of(part);
    const uint32_t stripes = collective::count_stripes(whole, options);
    std::optional<uint64_t> number;  // the same in all engines
    if (!is_point_to_point(part)) number = context_->queue->next_collective() + collectives++;
    for (uint32_t stripe = 0; stripe < stripes; ++stripe) {
      auto wanted = stripes == 1 ? std::move(whole) : collective::stripe_of(whole, stripe, stripes);
      operations.push_back(make_operation(part, std::move(wanted), stripe, number, deadline));
    }
    call.parts.push_back({std::move(part.table), stripes});
  }
  call.context = context_;
  call.copies_back = std::move(copies_back_);
  if (waits_for_earlier_) call.earlier = context_->queue->begin_phase();
  EndingWork::Facts facts;
  facts.type = type_;
  if (name_ != nullptr) {
    facts.title = context_->presented_name + ':' + name_;
    facts.ledger = context_->ledger;
    if (collectives > 0) facts.phase = context_->queue->phase();
  }
  facts.profiled = std::move(profiled_);
  facts.results = std::move(results_);
  facts.results_per_list = results_per_list_;
  facts.sequence = sequence;
  if (call.earlier) hold_back(call.earlier, operations.front());
  auto work = c10::make_intrusive<Work>(static_cast<int>(context_->group().rank), std::move(facts),
                                        std::move(call));
  // Who waits for the end anyway can wait for a copy, as long as that is quick.
  const bool is_single = parts_.size() == 1;
  const bool has_arrived =
      !work->is_staged() || (is_single && !is_async_ && context_->queue->is_free() &&
                             work->has_arrived_by(net::now() + kCopyPatience));
  // The caller of a single part drives the first engine at once, unless it may not have started
  // then.
  if (is_single) operations[0]->is_synchronous = !is_async_ && has_arrived;
  work->own(std::move(operations));
  if (collectives > 0) context_->queue->count_collectives(collectives);
  for (const at::Tensor& tensor : new_versions_) note_overwritten(tensor);
  context_->queue->issue(work, has_arrived);
  return work;
}

}  // namespace securefabric::torch_room
