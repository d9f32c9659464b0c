#include "collective/plan_parts.h"

#include <algorithm>

#include "base/check.h"

namespace securefabric::collective {
namespace {

constexpr uint64_t kSegmentUnit = 4096;  // a page, and a multiple of every element size
constexpr uint64_t kScratchUnit = 64;    // a cache line
// A local copy has at most so many pieces, whatever its length.
constexpr uint64_t kCopyPiecesMax = 1024;

uint64_t divide_up(uint64_t value, uint64_t divisor) {
  return (value + divisor - 1) / divisor;
}
uint64_t round_up(uint64_t value, uint64_t unit) {
  return divide_up(value, unit) * unit;
}

}  // namespace

Region part_of(const Region& whole, uint64_t offset, uint64_t length) {
  const uint64_t begin = std::min(offset, whole.length);
  return {whole.buffer, whole.offset + begin, std::min(length, whole.length - begin)};
}

std::vector<Region> cut_evenly(const Region& whole, uint32_t parts, uint32_t element_bytes) {
  const uint64_t elements = whole.length / element_bytes;
  std::vector<Region> regions;
  regions.reserve(parts);
  uint64_t offset = 0;
  for (uint32_t i = 0; i < parts; ++i) {
    const uint64_t length = (elements / parts + (i < elements % parts ? 1 : 0)) * element_bytes;
    regions.push_back(part_of(whole, offset, length));
    offset += length;
  }
  SF_CHECK(offset == whole.length);
  return regions;
}

uint64_t total_length(std::span<const Region> regions) {
  uint64_t total = 0;
  for (const Region& region : regions) total += region.length;
  return total;
}

uint64_t longest_length(std::span<const Region> regions) {
  uint64_t longest = 0;
  for (const Region& region : regions) longest = std::max(longest, region.length);
  return longest;
}

uint32_t Segmentation::count(const Region& chunk) const {
  return static_cast<uint32_t>(divide_up(chunk.length, segment_bytes));
}

Segmentation plan_segments(uint64_t chunk_bytes, uint64_t wanted, uint64_t steps_per_segment,
                           const PlanOptions& options) {
  const uint64_t even = std::clamp(divide_up(chunk_bytes, wanted), options.segment_bytes_min,
                                   options.segment_bytes_max);
  const uint64_t segments_affordable = std::max<uint64_t>(1, options.steps_max / steps_per_segment);
  const uint64_t affordable = divide_up(chunk_bytes, segments_affordable);
  Segmentation result;
  result.segment_bytes = round_up(std::max<uint64_t>({even, affordable, 1}), kSegmentUnit);
  result.segments_max = result.count({0, 0, chunk_bytes});
  return result;
}

Step make_send(uint32_t peer, uint32_t slot, const Region& source) {
  return {.kind = StepKind::kSend, .peer = peer, .slot = slot, .target = source};
}

Step make_receive(uint32_t peer, uint32_t slot, const Region& target) {
  return {.kind = StepKind::kReceiveCopy, .peer = peer, .slot = slot, .target = target};
}

Step make_receive_reduce(uint32_t peer, uint32_t slot, const Region& target,
                         const Region& operand) {
  SF_CHECK(target.length == operand.length);
  return {.kind = StepKind::kReceiveReduce,
          .peer = peer,
          .slot = slot,
          .target = target,
          .operand = operand};
}

Step make_copy(const Region& target, const Region& operand) {
  SF_CHECK(target.length == operand.length);
  return {.kind = StepKind::kCopy, .target = target, .operand = operand};
}

Step make_prepare(const Region& target, const Region& operand) {
  SF_CHECK(target.length == operand.length);
  return {.kind = StepKind::kPrepare, .target = target, .operand = operand};
}

Step make_finish(const Region& target) {
  return {.kind = StepKind::kFinish, .target = target};
}

Schedule make_schedule(const CollectiveRequest& request) {
  Schedule schedule;
  schedule.scratch_buffer = request.scratch_buffer;
  return schedule;
}

Region take_scratch(Schedule& schedule, uint64_t length) {
  const Region region{schedule.scratch_buffer, schedule.scratch_bytes, length};
  schedule.scratch_bytes += round_up(length, kScratchUnit);
  return region;
}

void add_copy(Schedule& schedule, const Region& target, const Region& operand,
              const PlanOptions& options) {
  if (target == operand) return;
  const uint64_t piece = round_up(
      std::max(options.segment_bytes_max, divide_up(target.length, kCopyPiecesMax)), kSegmentUnit);
  for (uint64_t at = 0; at < target.length; at += piece) {
    schedule.add(make_copy(part_of(target, at, piece), part_of(operand, at, piece)));
  }
}

}  // namespace securefabric::collective
