// A collective as data: which bytes this rank sends, receives, copies and reduces, and what must be
// complete before each of these steps may start.
//
// A planner (`plan_*`, pure) makes a Schedule for one rank; the executor runs it on the transport
// or the simulator without knowing which collective it is. Every rank plans alone: two schedules
// fit because both ends compute the same (sender, receiver, slot) for the same message.
//
// Steps are in an order in which each depends only on earlier ones. A step that depends on nothing
// is started at once; receives are therefore posted as early as their destination allows.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <vector>

namespace securefabric::collective {

// Bytes of one of the operation's buffers. Buffers are numbered by whoever plans: the caller's
// tensors first, then scratch (see Schedule::scratch_bytes).
struct Region {
  uint32_t buffer = 0;  // index into the operation's buffer table
  uint64_t offset = 0;  // bytes from the start of that buffer; a multiple of the element size
  uint64_t length = 0;  // bytes; a multiple of the element size
  bool operator==(const Region&) const = default;
  // Whether a byte belongs to both.
  bool overlaps(const Region& other) const {
    return buffer == other.buffer && length > 0 && other.length > 0 &&
           offset < other.offset + other.length && other.offset < offset + length;
  }
};

enum class StepKind : uint8_t {
  kSend,           // `target` is sent to `peer`; complete when delivered, or when copied if small
  kReceiveCopy,    // what `peer` sends is written to `target`
  kReceiveReduce,  // target = operand (+) received, element by element
  kCopy,           // target = operand, no network
  kPrepare,        // target = operand scaled by the factor of PREMUL_SUM
  kFinish,         // target is divided by the group size (AVG)
};

constexpr bool is_receive(StepKind kind) {
  return kind == StepKind::kReceiveCopy || kind == StepKind::kReceiveReduce;
}
// The others work on local memory and are complete as soon as they ran.
constexpr bool is_network(StepKind kind) {
  return kind == StepKind::kSend || is_receive(kind);
}

// Where an index of a step is expected: there is no such step. Schedule::add skips it.
constexpr uint32_t kNoStep = ~uint32_t{0};

struct Step {
  StepKind kind = StepKind::kSend;
  // kReceiveReduce: the received value is the left operand of the reduction, not the right one.
  // Both partners of an exchange must compute the same expression or NaN payloads would differ.
  bool received_is_left = false;
  uint32_t peer = 0;              // group rank at the other end; network steps only
  uint32_t slot = 0;              // unique per (sender, receiver) within the operation
  Region target = {};             // see StepKind
  Region operand = {};            // see StepKind; may equal `target`
  uint32_t dependency_begin = 0;  // into Schedule::dependencies
  uint32_t dependency_count = 0;  // how many steps must be complete before this one starts
};

struct Schedule {
  std::vector<Step> steps;             // topologically ordered
  std::vector<uint32_t> dependencies;  // indices of steps, grouped by the step that waits for them
  // Bytes of scratch memory the steps use. The scratch buffer's index is `scratch_buffer`.
  uint64_t scratch_bytes = 0;
  uint32_t scratch_buffer = 0;

  // Appends a step that waits for `after` (indices of earlier steps, or kNoStep) and returns its
  // index.
  uint32_t add(Step step, std::span<const uint32_t> after = {});
  uint32_t add(const Step& step, std::initializer_list<uint32_t> after) {
    return add(step, std::span<const uint32_t>(after.begin(), after.size()));
  }
  std::span<const uint32_t> dependencies_of(const Step& step) const {
    return std::span(dependencies).subspan(step.dependency_begin, step.dependency_count);
  }
};

}  // namespace securefabric::collective
