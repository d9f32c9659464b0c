#include "collective/operation.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace securefabric::collective {

Operation::Operation(OperationRequest request) : request_(std::move(request)) {
  signature_.kind = static_cast<uint8_t>(request_.kind);
  signature_.data_type = static_cast<uint8_t>(request_.data_type);
  signature_.reduce_op = static_cast<uint8_t>(request_.reduce_op);
  signature_.root = request_.root;
  signature_.count = request_.count;
  if (request_.group) signature_.group_tail = request_.group->tail;
  // The two ends of a message must agree, and a send is matched by a receive.
  if (request_.kind == OperationKind::kReceive) {
    signature_.kind = static_cast<uint8_t>(OperationKind::kSend);
  }
  const ReduceOp op = request_.reduce_op;
  if (op != ReduceOp::kNone) {
    reduce_ = find_reduce_kernel(request_.data_type, op);
    SF_CHECK(reduce_ != nullptr);
  }
  if (op == ReduceOp::kPremulSum) prepare_ = find_prepare_kernel(request_.data_type);
  if (op == ReduceOp::kAvg) finish_ = find_finish_kernel(request_.data_type);

  Schedule& schedule = request_.schedule;
  if (schedule.scratch_bytes > 0) {
    scratch_.resize(schedule.scratch_bytes);
    SF_CHECK(schedule.scratch_buffer >= request_.buffers.size());
    request_.buffers.resize(schedule.scratch_buffer + 1);
    request_.buffers[schedule.scratch_buffer] = scratch_;
  }
  states = std::vector<StepState>(schedule.steps.size());
  steps_left = schedule.steps.size();
  for (size_t i = 0; i < states.size(); ++i) {
    states[i].waits_for = schedule.steps[i].dependency_count;
    states[i].sink.operation = this;
    states[i].sink.step = &schedule.steps[i];
  }
  index_dependents();
}

// Counting sort of the edges by the step they start from.
void Operation::index_dependents() {
  const Schedule& schedule = request_.schedule;
  dependent_begin.assign(schedule.steps.size() + 1, 0);
  for (const uint32_t from : schedule.dependencies) ++dependent_begin[from + 1];
  for (size_t i = 1; i < dependent_begin.size(); ++i) dependent_begin[i] += dependent_begin[i - 1];
  dependents.resize(schedule.dependencies.size());
  std::vector<uint32_t> next(dependent_begin.begin(), dependent_begin.end());
  for (uint32_t i = 0; i < schedule.steps.size(); ++i) {
    for (const uint32_t from : schedule.dependencies_of(schedule.steps[i])) {
      dependents[next[from]++] = i;
    }
  }
}

base::MutableBytes Operation::bytes_of(const Region& region) {
  if (region.length == 0) return {};
  SF_CHECK(region.buffer < request_.buffers.size());
  const base::MutableBytes buffer = request_.buffers[region.buffer];
  SF_CHECK(region.offset <= buffer.size() && region.length <= buffer.size() - region.offset);
  return buffer.subspan(region.offset, region.length);
}

void Operation::run_local(const Step& step) {
  const base::MutableBytes target = bytes_of(step.target);
  const base::MutableBytes operand = bytes_of(step.operand);
  SF_CHECK(target.size() == operand.size() || step.kind == StepKind::kFinish);
  if (target.empty()) return;
  switch (step.kind) {
    case StepKind::kCopy: std::memmove(target.data(), operand.data(), target.size()); break;
    case StepKind::kPrepare:
      prepare_(target.data(), operand.data(), target.size(), request_.premul_factor);
      break;
    case StepKind::kFinish:
      finish_(target.data(), target.data(), target.size(), static_cast<double>(group().size()));
      break;
    default: SF_CHECK_MSG(false, "not a local step");
  }
}

namespace {

// A fragment is placed block by block, and before each block the lines are fetched that lie this
// far behind it: the caller's tensors are seldom in the cache, the next fragment's place is
// probably behind this one's, and the prefetchers of CPUs stop at each page.
constexpr size_t kBlockBytes = 2048;  // a multiple of every element
constexpr size_t kFetchDistance = 4096;
constexpr size_t kCacheLineBytes = 64;

// The lines that the block kFetchDistance behind `at` has, as far as the region goes.
template <bool kWillBeWritten>
void fetch_ahead(base::Bytes region, uint64_t at) {
  for (uint64_t line = at + kFetchDistance; line < at + kFetchDistance + kBlockBytes;
       line += kCacheLineBytes) {
    if (line >= region.size()) return;
    __builtin_prefetch(region.data() + line, kWillBeWritten ? 1 : 0);
  }
}

}  // namespace

void Operation::StepSink::place(uint64_t offset, base::Bytes bytes) {
  const base::MutableBytes target = operation->bytes_of(step->target);
  const bool reduces = step->kind == StepKind::kReceiveReduce;
  const base::Bytes own = reduces ? operation->bytes_of(step->operand) : target;
  for (size_t done = 0; done < bytes.size(); done += kBlockBytes) {
    const base::Bytes block = bytes.subspan(done, std::min(kBlockBytes, bytes.size() - done));
    const uint64_t at = offset + done;
    fetch_ahead<true>(target, at);
    if (!reduces) {
      std::memcpy(target.data() + at, block.data(), block.size());
      continue;
    }
    if (own.data() != target.data()) fetch_ahead<false>(own, at);
    const uint8_t* const left = step->received_is_left ? block.data() : own.data() + at;
    const uint8_t* const right = step->received_is_left ? own.data() + at : block.data();
    operation->reduce_(target.data() + at, left, right, block.size());
  }
}

namespace {

std::string describe_parts(OperationKind kind, DataType type, ReduceOp op, uint32_t root,
                           uint64_t count) {
  std::string text = operation_kind_name(kind);
  if (kind == OperationKind::kBarrier) return text;
  text += std::string("(") + data_type_name(type);
  // Ranks of an all_to_all have counts of their own, which are no part of the signature.
  if (kind != OperationKind::kAllToAll) text += " x " + std::to_string(count);
  if (op != ReduceOp::kNone) text += std::string(", ") + reduce_op_name(op);
  const bool has_root = kind == OperationKind::kBroadcast || kind == OperationKind::kReduce ||
                        kind == OperationKind::kGather || kind == OperationKind::kScatter;
  if (has_root) text += ", root " + std::to_string(root);
  return text + ")";
}

}  // namespace

std::string Operation::describe() const {
  return describe_parts(request_.kind, request_.data_type, request_.reduce_op, request_.root,
                        request_.count);
}

std::string describe_signature(const wire::Signature& signature) {
  const bool is_known = signature.kind >= static_cast<uint8_t>(OperationKind::kAllReduce) &&
                        signature.kind <= static_cast<uint8_t>(OperationKind::kReceive) &&
                        signature.data_type >= static_cast<uint8_t>(DataType::kByte) &&
                        signature.data_type <= static_cast<uint8_t>(DataType::kComplex128) &&
                        signature.reduce_op <= static_cast<uint8_t>(ReduceOp::kPremulSum);
  if (!is_known) return "an operation unknown to this version";
  return describe_parts(
      static_cast<OperationKind>(signature.kind), static_cast<DataType>(signature.data_type),
      static_cast<ReduceOp>(signature.reduce_op), signature.root, signature.count);
}

}  // namespace securefabric::collective
