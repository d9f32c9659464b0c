// What the planners are made of: cutting regions, making steps, taking scratch memory.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "collective/plan.h"

namespace securefabric::collective {

// `offset` and `length` are relative to `whole`, and are cut to fit: beyond its end is an empty
// region.
Region part_of(const Region& whole, uint64_t offset, uint64_t length);

// `parts` consecutive regions that differ by at most one element in length.
std::vector<Region> cut_evenly(const Region& whole, uint32_t parts, uint32_t element_bytes);

uint64_t total_length(std::span<const Region> regions);
uint64_t longest_length(std::span<const Region> regions);

// How long messages are cut for pipelining: into equal segments, the last of which may be shorter.
struct Segmentation {
  uint64_t segment_bytes = 1;  // a multiple of 4 KiB, thus of every element size
  uint32_t segments_max = 0;   // segments of the longest chunk

  uint32_t count(const Region& chunk) const;
  Region segment(const Region& chunk, uint32_t index) const {
    return part_of(chunk, index * segment_bytes, segment_bytes);
  }
};

// For chunks of up to `chunk_bytes`, to be cut into about `wanted` segments, where a schedule has
// `steps_per_segment` steps for each. See the pipelining constants of PlanOptions.
Segmentation plan_segments(uint64_t chunk_bytes, uint64_t wanted, uint64_t steps_per_segment,
                           const PlanOptions& options);

Step make_send(uint32_t peer, uint32_t slot, const Region& source);
Step make_receive(uint32_t peer, uint32_t slot, const Region& target);
// target = operand (+) received.
Step make_receive_reduce(uint32_t peer, uint32_t slot, const Region& target, const Region& operand);
Step make_copy(const Region& target, const Region& operand);
Step make_prepare(const Region& target, const Region& operand);
Step make_finish(const Region& target);

inline bool has_prepare(const CollectiveRequest& request) {
  return request.reduce_op == ReduceOp::kPremulSum;
}
inline bool has_finish(const CollectiveRequest& request) {
  return request.reduce_op == ReduceOp::kAvg;
}

Schedule make_schedule(const CollectiveRequest& request);

// Scratch memory that nothing else uses, at a multiple of 64 bytes.
Region take_scratch(Schedule& schedule, uint64_t length);

// Copies `operand` to `target` in pieces, so that no single step keeps the engine from the network
// for long. Nothing if the two are the same.
void add_copy(Schedule& schedule, const Region& target, const Region& operand,
              const PlanOptions& options);

// Rank `rank + distance`, around the ring; `distance` in (-size, size).
inline uint32_t rank_at(const CollectiveRequest& request, int64_t distance) {
  const auto size = static_cast<int64_t>(request.size);
  return static_cast<uint32_t>((static_cast<int64_t>(request.rank) + distance + size) % size);
}

}  // namespace securefabric::collective
