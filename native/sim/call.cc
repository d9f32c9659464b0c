#include "sim/call.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"
#include "base/random.h"
#include "sim/elements.h"

namespace securefabric::sim {

using collective::CollectiveRequest;
using collective::DataType;
using collective::Group;
using collective::Operation;
using collective::OperationKind;
using collective::OperationRequest;
using collective::ReduceOp;
using collective::Region;

namespace {

constexpr uint32_t kInputBuffer = 0;
constexpr uint32_t kOutputBuffer = 1;
constexpr uint32_t kScratchBuffer = 2;
// Around every output, to see writes beside it.
constexpr size_t kGuardBytes = 64;
constexpr uint8_t kGuard = 0xA5;

uint64_t sum_of(const std::vector<uint64_t>& lengths) {
  return std::accumulate(lengths.begin(), lengths.end(), uint64_t{0});
}

// Consecutive regions of these lengths.
std::vector<Region> pack(uint32_t buffer, uint64_t offset, const std::vector<uint64_t>& lengths) {
  std::vector<Region> regions;
  for (const uint64_t length : lengths) {
    regions.push_back({buffer, offset, length});
    offset += length;
  }
  return regions;
}

}  // namespace

bool is_reduction(OperationKind kind) {
  return kind == OperationKind::kAllReduce || kind == OperationKind::kReduce ||
         kind == OperationKind::kReduceScatter;
}

bool has_root(OperationKind kind) {
  return kind == OperationKind::kBroadcast || kind == OperationKind::kReduce ||
         kind == OperationKind::kGather || kind == OperationKind::kScatter;
}

bool may_be_in_place(OperationKind kind) {
  return kind == OperationKind::kAllReduce || kind == OperationKind::kReduce ||
         kind == OperationKind::kBroadcast || kind == OperationKind::kAllGather;
}

std::string describe(const Call& call) {
  std::string text = collective::operation_kind_name(call.kind);
  if (call.kind == OperationKind::kBarrier) return text;
  text += std::string(" ") + collective::data_type_name(call.data_type) + " x " +
          std::to_string(call.count);
  if (is_reduction(call.kind)) {
    text += std::string(" ") + collective::reduce_op_name(call.reduce_op);
  }
  if (has_root(call.kind)) text += " root " + std::to_string(call.root);
  if (call.is_uneven) text += " uneven";
  if (call.is_in_place) text += " in place";
  return text;
}

CallRun::CallRun(const Call& call, uint32_t size)
    : call_(call),
      size_(size),
      element_bytes_(collective::data_type_bytes(call.data_type)),
      sources_(size),
      targets_(size) {
  for (uint32_t rank = 0; rank < size; ++rank) {
    given_.push_back(make_input(rank));
    targets_[rank].assign(sum_of(output_lengths(rank)) + 2 * kGuardBytes, kGuard);
    const Layout at = layout(rank);
    if (at.inputs.empty()) continue;
    const Region& first = at.inputs.front();
    if (first.buffer == kInputBuffer) {
      sources_[rank] = given_[rank];
    } else {
      std::copy(given_[rank].begin(), given_[rank].end(),
                targets_[rank].begin() + static_cast<ptrdiff_t>(first.offset));
    }
  }
}

// What `from` has for `to`; the whole tensor in the kinds without chunks.
uint64_t CallRun::chunk_bytes(uint32_t from, uint32_t to) const {
  uint32_t shape = 0;
  switch (call_.kind) {
    case OperationKind::kAllGather:
    case OperationKind::kGather: shape = from + 1; break;
    case OperationKind::kReduceScatter:
    case OperationKind::kScatter: shape = to + 1; break;
    case OperationKind::kAllToAll: shape = 3 * from + 5 * to + 1; break;
    default: return call_.count * element_bytes_;
  }
  constexpr uint64_t kExtraMax = 7;
  const uint64_t extra = call_.is_uneven ? shape * 3 % kExtraMax : 0;
  return (call_.count + extra) * element_bytes_;
}

std::vector<uint64_t> CallRun::input_lengths(uint32_t rank) const {
  const bool is_root = rank == call_.root;
  switch (call_.kind) {
    case OperationKind::kBarrier: return {};
    case OperationKind::kBroadcast:
      if (!is_root) return {};
      return {chunk_bytes(rank, 0)};
    case OperationKind::kScatter:
      if (!is_root) return {};
      break;
    case OperationKind::kReduceScatter:
    case OperationKind::kAllToAll: break;
    default: return {chunk_bytes(rank, 0)};
  }
  std::vector<uint64_t> lengths;
  for (uint32_t to = 0; to < size_; ++to) lengths.push_back(chunk_bytes(rank, to));
  return lengths;
}

std::vector<uint64_t> CallRun::output_lengths(uint32_t rank) const {
  const bool is_root = rank == call_.root;
  switch (call_.kind) {
    case OperationKind::kBarrier: return {};
    case OperationKind::kReduce:
      if (!is_root) return {};
      return {chunk_bytes(0, rank)};
    case OperationKind::kGather:
      if (!is_root) return {};
      break;
    case OperationKind::kAllGather:
    case OperationKind::kAllToAll: break;
    default: return {chunk_bytes(0, rank)};
  }
  std::vector<uint64_t> lengths;
  for (uint32_t from = 0; from < size_; ++from) lengths.push_back(chunk_bytes(from, rank));
  return lengths;
}

CallRun::Layout CallRun::layout(uint32_t rank) const {
  Layout at{pack(kInputBuffer, 0, input_lengths(rank)),
            pack(kOutputBuffer, kGuardBytes, output_lengths(rank))};
  if (call_.is_in_place && !at.inputs.empty() && !at.outputs.empty()) {
    SF_CHECK(may_be_in_place(call_.kind));
    at.inputs = {at.outputs[call_.kind == OperationKind::kAllGather ? rank : 0]};
  }
  return at;
}

std::vector<uint8_t> CallRun::make_input(uint32_t rank) const {
  std::vector<uint8_t> input(sum_of(input_lengths(rank)));
  if (!is_reduction(call_.kind)) {
    base::Random(call_.seed * 1'000 + rank).fill(input);
    return input;
  }
  for (uint64_t i = 0; i < input.size() / element_bytes_; ++i) {
    write_element(call_.data_type, input_value(call_.data_type, call_.seed, rank, i), 1,
                  input.data() + i * element_bytes_);
  }
  return input;
}

// "As all ranks see it": nothing in it may depend on who asks.
uint64_t CallRun::total_count() const {
  uint64_t bytes = 0;
  switch (call_.kind) {
    case OperationKind::kAllGather:
    case OperationKind::kGather: bytes = sum_of(output_lengths(call_.root)); break;
    case OperationKind::kReduceScatter:
    case OperationKind::kScatter: bytes = sum_of(input_lengths(call_.root)); break;
    case OperationKind::kAllToAll: return 0;  // each pair has its own; lengths are compared anyway
    case OperationKind::kBarrier: return 0;
    default: bytes = chunk_bytes(0, 0);
  }
  return bytes / element_bytes_;
}

std::shared_ptr<Operation> CallRun::make_operation(const std::shared_ptr<Group>& group,
                                                   base::Instant deadline) {
  const uint32_t rank = group->rank;
  Layout at = layout(rank);
  CollectiveRequest plan_request;
  plan_request.kind = call_.kind;
  plan_request.reduce_op = call_.reduce_op;
  plan_request.element_bytes = static_cast<uint32_t>(element_bytes_);
  plan_request.rank = rank;
  plan_request.size = size_;
  plan_request.root = call_.root;
  plan_request.inputs = std::move(at.inputs);
  plan_request.outputs = std::move(at.outputs);
  plan_request.scratch_buffer = kScratchBuffer;

  OperationRequest request;
  request.group = group;
  request.kind = call_.kind;
  request.data_type = call_.data_type;
  request.reduce_op = call_.reduce_op;
  request.root = call_.root;
  request.count = total_count();
  request.premul_factor = kPremulFactor;
  request.schedule = collective::plan(plan_request);
  request.buffers = {sources_[rank], targets_[rank]};
  request.deadline = deadline;
  return std::make_shared<Operation>(std::move(request));
}

std::vector<uint8_t> CallRun::reduced(uint64_t begin_bytes, uint64_t length) const {
  std::vector<uint8_t> result(length);
  std::vector<int64_t> values(size_);
  const int64_t divisor = call_.reduce_op == ReduceOp::kAvg ? size_ : 1;
  const uint64_t first = begin_bytes / element_bytes_;
  for (uint64_t i = 0; i < length / element_bytes_; ++i) {
    for (uint32_t rank = 0; rank < size_; ++rank) {
      values[rank] = input_value(call_.data_type, call_.seed, rank, first + i);
    }
    write_element(call_.data_type, reduce_values(call_.reduce_op, values), divisor,
                  result.data() + i * element_bytes_);
  }
  return result;
}

const std::vector<uint8_t>& CallRun::reduced_whole() const {
  if (!reduced_whole_) reduced_whole_ = reduced(0, chunk_bytes(0, 0));
  return *reduced_whole_;
}

std::vector<uint8_t> CallRun::expected(uint32_t rank) const {
  if (output_lengths(rank).empty()) return {};
  if (call_.kind == OperationKind::kAllReduce) return reduced_whole();
  uint64_t begin = 0;  // of this rank's chunk in every input that has chunks
  if (is_reduction(call_.kind)) {
    for (uint32_t to = 0; call_.kind == OperationKind::kReduceScatter && to < rank; ++to) {
      begin += chunk_bytes(0, to);
    }
    return reduced(begin, sum_of(output_lengths(rank)));
  }
  std::vector<uint8_t> result;
  for (uint32_t from = 0; from < size_; ++from) {
    const std::vector<uint64_t> lengths = input_lengths(from);
    if (lengths.empty()) continue;
    const uint32_t mine = lengths.size() == 1 ? 0 : rank;
    const std::vector<Region> chunks = pack(kInputBuffer, 0, lengths);
    const auto first = given_[from].begin() + static_cast<ptrdiff_t>(chunks[mine].offset);
    result.insert(result.end(), first, first + static_cast<ptrdiff_t>(chunks[mine].length));
  }
  return result;
}

std::optional<std::string> CallRun::check(uint32_t rank) const {
  const std::vector<uint8_t>& target = targets_[rank];
  std::vector<uint8_t> wanted(kGuardBytes, kGuard);
  const std::vector<uint8_t> result = expected(rank);
  wanted.insert(wanted.end(), result.begin(), result.end());
  wanted.insert(wanted.end(), kGuardBytes, kGuard);
  if (target.size() != wanted.size()) return "the output has a wrong size: a bug of the oracle";
  if (!sources_[rank].empty() && sources_[rank] != given_[rank]) return "the input was written to";
  const auto [at, should] = std::mismatch(target.begin(), target.end(), wanted.begin());
  if (at == target.end()) return std::nullopt;
  return "byte " + std::to_string(at - target.begin() - static_cast<ptrdiff_t>(kGuardBytes)) +
         " of " + std::to_string(result.size()) + " is " + std::to_string(*at) + ", not " +
         std::to_string(*should);
}

namespace {

OperationRequest point_to_point(const std::shared_ptr<Group>& group, OperationKind kind,
                                uint32_t peer, uint32_t tag, base::MutableBytes bytes) {
  collective::Step step;
  const bool is_send = kind == OperationKind::kSend;
  step.kind = is_send ? collective::StepKind::kSend : collective::StepKind::kReceiveCopy;
  step.peer = peer;
  step.target = Region{0, 0, bytes.size()};
  OperationRequest request;
  request.group = group;
  request.kind = kind;
  request.data_type = DataType::kByte;
  request.count = bytes.size();
  request.tag = tag;
  request.schedule.add(step);
  request.buffers = {bytes};
  return request;
}

}  // namespace

std::shared_ptr<Operation> make_send(const std::shared_ptr<Group>& group, uint32_t peer,
                                     uint32_t tag, base::MutableBytes bytes) {
  return std::make_shared<Operation>(point_to_point(group, OperationKind::kSend, peer, tag, bytes));
}

std::shared_ptr<Operation> make_receive(const std::shared_ptr<Group>& group, uint32_t peer,
                                        uint32_t tag, base::MutableBytes bytes) {
  return std::make_shared<Operation>(
      point_to_point(group, OperationKind::kReceive, peer, tag, bytes));
}

}  // namespace securefabric::sim
