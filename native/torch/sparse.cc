#include "torch/sparse.h"

#include <ATen/core/grad_mode.h>
#include <ATen/core/ivalue.h>

#include <algorithm>

#include "net/clock.h"
#include "torch/errors.h"
#include "torch/overwrite.h"
#include "torch/signals.h"

namespace securefabric::torch_room {

using base::Duration;
using base::Error;
using base::ErrorCode;
using base::Instant;
using collective::OperationKind;

namespace {

// Beyond what a caller can choose, like those of the monitored barrier.
constexpr uint32_t kElementsTag = (1U << 31) + 2;

// A rank's row of shapes_: number of elements, dense dimensions, scalar type, sizes, -1 after them.
constexpr int64_t kElements = 0;
constexpr int64_t kDenseDimensions = 1;
constexpr int64_t kScalarType = 2;
constexpr int64_t kSizes = 3;
constexpr int64_t kDimensionsMax = 13;
constexpr int64_t kShape = kSizes + kDimensionsMax;

at::Tensor shape_of(const at::Tensor& sparse) {
  at::Tensor shape = at::full({kShape}, -1, at::kLong);
  auto* row = shape.mutable_data_ptr<int64_t>();
  row[kElements] = sparse._nnz();
  row[kDenseDimensions] = sparse.dense_dim();
  row[kScalarType] = static_cast<int64_t>(sparse.scalar_type());
  std::copy(sparse.sizes().begin(), sparse.sizes().end(), row + kSizes);
  return shape;
}

void add_elements(CallBuilder& call, OperationKind kind, uint32_t peer, const at::Tensor& tensor) {
  Part part = call.make_message(kind, peer, kElementsTag, tensor.nbytes());
  if (kind == OperationKind::kSend) {
    part.inputs = {part.table.add_input(tensor)};
  } else {
    part.outputs = {part.table.add_output(tensor)};
  }
  call.add(std::move(part));
}

}  // namespace

at::Tensor SparseAllReduce::contribution(const std::vector<at::Tensor>& tensors) {
  const at::NoGradGuard no_grad;
  TORCH_CHECK(tensors.front().dim() <= kDimensionsMax,
              "securefabric::all_reduce: a sparse tensor of ", tensors.front().dim(),
              " dimensions; at most ", kDimensionsMax);
  at::Tensor sum = tensors.front();
  for (size_t i = 1; i < tensors.size(); ++i) sum = sum + tensors[i];
  return sum.coalesce();
}

SparseAllReduce::SparseAllReduce(std::shared_ptr<const GroupContext> context,
                                 std::shared_ptr<SparseLane> lane, Facts facts, at::Tensor own,
                                 std::vector<at::Tensor> tensors, std::chrono::milliseconds timeout)
    : EndingWork(static_cast<int>(context->group().rank), std::move(facts)),
      context_(std::move(context)),
      lane_(std::move(lane)),
      tensors_(std::move(tensors)),
      deadline_(deadline_after(timeout)),
      own_(std::move(own)),
      shapes_(at::empty({context_->group().size(), kShape}, at::kLong)) {}

CallBuilder SparseAllReduce::begin(c10d::OpType type) const {
  const int64_t left = std::max<int64_t>((deadline_ - net::now()).millis(), 0);
  return {context_, nullptr, type, std::chrono::milliseconds(left), /*is_async=*/true};
}

void SparseAllReduce::start() {
  CallBuilder call = begin(c10d::OpType::ALLGATHER);
  const at::Tensor shape = shape_of(own_);
  Part part =
      call.make_part(OperationKind::kAllGather, shape, static_cast<uint64_t>(shapes_.numel()));
  const collective::Region all = part.table.add_output(shapes_);
  for (uint64_t i = 0; i < context_->group().size(); ++i) {
    part.outputs.push_back({all.buffer, i * shape.nbytes(), shape.nbytes()});
  }
  part.inputs = {part.table.add_input(shape)};
  call.add(std::move(part));
  first_ = std::move(call).start(getSequencenumber());
  const std::lock_guard<std::mutex> lock(lane_->mutex);
  lane_->waiting.push_back(
      c10::intrusive_ptr<SparseAllReduce>::unsafe_reclaim_from_nonowning(this));
}

void SparseAllReduce::watch() {
  first_->getFuture()->addCallback(
      [self = c10::intrusive_ptr<SparseAllReduce>::unsafe_reclaim_from_nonowning(this)](
          c10::ivalue::Future&) { self->on_shapes(); });
}

void SparseAllReduce::on_shapes() {
  {
    const std::lock_guard<std::mutex> lock(lane_->mutex);
    has_shapes_ = true;
  }
  post_ready(*lane_);
}

// Callbacks run, and works end, without the lane's lock.
void SparseAllReduce::post_ready(SparseLane& lane) {
  std::vector<c10::intrusive_ptr<SparseAllReduce>> posted;
  {
    const std::lock_guard<std::mutex> lock(lane.mutex);
    while (!lane.waiting.empty() && lane.waiting.front()->has_shapes_) {
      posted.push_back(std::move(lane.waiting.front()));
      lane.waiting.pop_front();
      SparseAllReduce& call = *posted.back();
      try {
        call.post_elements();
      } catch (const std::exception& failure) {  // no memory for what others have
        call.obstacle_ = std::current_exception();
        call.context_->fabric->abort_group(call.context_->groups,
                                           Error{ErrorCode::kSystem, failure.what()});
      }
    }
  }
  for (const auto& call : posted) {
    if (!call->second_) {
      call->fail(call->obstacle_);
      continue;
    }
    call->second_->getFuture()->addCallback([call](c10::ivalue::Future&) { call->on_elements(); });
  }
}

// All ranks see the same rows, so either all of them come to the second stage or none does.
std::exception_ptr SparseAllReduce::find_mismatch() const {
  const auto* rows = shapes_.const_data_ptr<int64_t>();
  const auto own = static_cast<int64_t>(context_->group().rank) * kShape;
  for (uint32_t rank = 0; rank < context_->group().size(); ++rank) {
    const int64_t* row = rows + static_cast<int64_t>(rank) * kShape;
    if (std::equal(row + kDenseDimensions, row + kShape, rows + own + kDenseDimensions)) continue;
    return make_exception(
        Error{ErrorCode::kMismatch,
              "the sparse tensors of ranks " +
                  std::to_string(context_->group().ranks[context_->group().rank].value) + " and " +
                  std::to_string(context_->group().ranks[rank].value) +
                  " differ in sizes, type or dense dimensions"});
  }
  return nullptr;
}

void SparseAllReduce::post_elements() {
  obstacle_ = first_->exception() ? first_->exception() : find_mismatch();
  if (obstacle_) return;
  const int64_t sparse_dimensions = own_.sparse_dim();
  CallBuilder call = begin(c10d::OpType::_ALLREDUCE_SPARSE);
  const auto* rows = shapes_.const_data_ptr<int64_t>();
  for (uint32_t rank = 0; rank < context_->group().size(); ++rank) {
    if (rank == context_->group().rank) {
      indices_.push_back(own_.indices());
      values_.push_back(own_.values());
      continue;
    }
    const int64_t elements = rows[static_cast<int64_t>(rank) * kShape + kElements];
    std::vector<int64_t> sizes = own_.values().sizes().vec();
    sizes.front() = elements;
    indices_.push_back(at::empty({sparse_dimensions, elements}, at::kLong));
    values_.push_back(at::empty(sizes, own_.values().options()));
    add_elements(call, OperationKind::kReceive, rank, indices_.back());
    add_elements(call, OperationKind::kReceive, rank, values_.back());
    add_elements(call, OperationKind::kSend, rank, own_.indices());
    add_elements(call, OperationKind::kSend, rank, own_.values());
  }
  second_ = std::move(call).start(getSequencenumber());
}

void SparseAllReduce::on_elements() {
  if (const auto failure = second_->exception()) return fail(failure);
  try {
    const at::NoGradGuard no_grad;
    const at::Tensor total = sum();
    for (const at::Tensor& tensor : tensors_) overwrite(tensor, total);
  } catch (const std::exception&) {
    return fail(std::current_exception());
  }
  end(nullptr, /*has_timed_out=*/false);
}

// In the order of ranks, so that all get the same bits; half types are summed in float32.
at::Tensor SparseAllReduce::sum() const {
  const at::ScalarType type = own_.scalar_type();
  const bool is_half = type == at::kHalf || type == at::kBFloat16;
  at::Tensor total;
  for (size_t rank = 0; rank < values_.size(); ++rank) {
    const at::Tensor values = is_half ? values_[rank].to(at::kFloat) : values_[rank];
    at::_validate_sparse_coo_tensor_args(indices_[rank], values, own_.sizes());
    const at::Tensor part = at::sparse_coo_tensor(indices_[rank], values, own_.sizes());
    part._coalesced_(true);
    total = total.defined() ? total + part : part;
  }
  total = total.coalesce();
  return is_half ? total.to(type) : total;
}

void SparseAllReduce::fail(const std::exception_ptr& failure) {
  end(failure, /*has_timed_out=*/net::now() >= deadline_);
}

bool SparseAllReduce::wait(std::chrono::milliseconds timeout) {
  const Instant until = timeout == kNoTimeout ? Instant::never() : deadline_after(timeout);
  std::unique_lock<std::mutex> lock(mutex_);
  while (!completed_) {
    const Instant at = net::now();
    if (at >= until) break;
    // Bounded, so that no wait is longer than the condition variable can count.
    const Duration step = base::shorter(until - at, kSignalTick);
    cv_.wait_for(lock, std::chrono::nanoseconds(step.nanos()));
    if (!completed_ && runs_signal_handlers()) {
      lock.unlock();
      run_signal_handlers();
      lock.lock();
    }
  }
  const bool is_late = !completed_;
  lock.unlock();
  if (is_late) {
    context_->fabric->abort_group(
        context_->groups,
        Error{ErrorCode::kTimeout, "wait() of a sparse all_reduce of " + context_->describe() +
                                       " Timed out after " + std::to_string(timeout.count()) +
                                       " ms; the group cannot be used any more"});
  }
  await_end();
  rethrow_failure();
  return true;
}

void SparseAllReduce::abort() {
  context_->fabric->abort_group(context_->groups,
                                Error{ErrorCode::kAborted,
                                      "abort() was called on a sparse all_reduce of process "
                                      "group '" +
                                          context_->group().name + "'"});
}

}  // namespace securefabric::torch_room
