// Broadcast and reduce. Both number the ranks from the root on: the root is 0.
#include <algorithm>

#include "collective/plan_algorithms.h"
#include "collective/plan_parts.h"

namespace securefabric::collective {
namespace {

uint32_t number_of(const CollectiveRequest& request) {
  return (request.rank + request.size - request.root) % request.size;
}
uint32_t rank_of(const CollectiveRequest& request, uint32_t number) {
  return (number + request.root) % request.size;
}

Segmentation plan_chain_segments(const CollectiveRequest& request, uint64_t bytes,
                                 const PlanOptions& options) {
  // The last rank of the chain starts `size` segments late: make that a fraction of the whole.
  const uint64_t wanted = std::max<uint64_t>(options.segments_per_chunk, 2 * request.size);
  return plan_segments(bytes, wanted, 3, options);
}

}  // namespace

// Binomial tree. A rank whose number ends in k zero bits (the root: in as many as are needed)
// receives from the rank whose number has the lowest one bit cleared and has k children, whose
// numbers set one of these zeros. It serves the child with the largest subtree first.
Schedule plan_broadcast_tree(const CollectiveRequest& request, const PlanOptions& options) {
  Schedule schedule = make_schedule(request);
  const uint32_t number = number_of(request);
  const bool is_root = number == 0;
  const Region& data = is_root ? request.inputs[0] : request.outputs[0];
  if (data.length == 0) return schedule;
  uint32_t bit = 1;
  while (bit < request.size && (number & bit) == 0) bit <<= 1;
  uint32_t received = kNoStep;
  if (!is_root) {
    received = schedule.add(make_receive(rank_of(request, number - bit), 0, data));
  }
  for (bit >>= 1; bit > 0; bit >>= 1) {
    if (number + bit >= request.size) continue;
    schedule.add(make_send(rank_of(request, number + bit), 0, data), {received});
  }
  if (is_root) add_copy(schedule, request.outputs[0], data, options);
  return schedule;
}

// Pipelined chain. Every rank receives the tensor from the rank before it, segment by segment, and
// sends each segment on to the rank after it: each link carries the tensor once.
Schedule plan_broadcast_chain(const CollectiveRequest& request, const PlanOptions& options) {
  Schedule schedule = make_schedule(request);
  const uint32_t number = number_of(request);
  const bool is_root = number == 0;
  const Region& data = is_root ? request.inputs[0] : request.outputs[0];
  const Segmentation segmentation = plan_chain_segments(request, data.length, options);
  for (uint32_t j = 0; j < segmentation.count(data); ++j) {
    const Region segment = segmentation.segment(data, j);
    uint32_t received = kNoStep;
    if (!is_root) {
      received = schedule.add(make_receive(rank_of(request, number - 1), j, segment));
    }
    if (number + 1 < request.size) {
      schedule.add(make_send(rank_of(request, number + 1), j, segment), {received});
    }
  }
  if (is_root) add_copy(schedule, request.outputs[0], data, options);
  return schedule;
}

// Binomial tree, from the leaves: the tree of the broadcast with every arrow turned. A rank adds
// its children's sums to its own value, the child with the smallest subtree first, always
// own (+) received, and sends the sum to its parent. Only the root may write its output, the others
// add in scratch memory.
Schedule plan_reduce_tree(const CollectiveRequest& request, const PlanOptions&) {
  Schedule schedule = make_schedule(request);
  const uint32_t number = number_of(request);
  Region value = request.inputs[0];
  if (value.length == 0) return schedule;
  const bool is_leaf = number % 2 == 1 || number + 1 == request.size;
  Region sum = value;  // where to add; a leaf adds nothing
  if (number == 0)
    sum = request.outputs[0];
  else if (!is_leaf || has_prepare(request))
    sum = take_scratch(schedule, value.length);

  uint32_t after = kNoStep;
  if (has_prepare(request)) {
    after = schedule.add(make_prepare(sum, value));
    value = sum;
  }
  uint32_t bit = 1;
  for (; bit < request.size && (number & bit) == 0; bit <<= 1) {
    if (number + bit >= request.size) continue;
    const uint32_t child = rank_of(request, number + bit);
    after = schedule.add(make_receive_reduce(child, 0, sum, value), {after});
    value = sum;
  }
  if (number > 0) {
    schedule.add(make_send(rank_of(request, number - bit), 0, value), {after});
  } else if (has_finish(request)) {
    schedule.add(make_finish(sum), {after});
  }
  return schedule;
}

// Pipelined chain, towards the root. The last rank sends its value segment by segment; every other
// rank adds its own to what it receives and sends the sum on; the root keeps it. In between sums
// live in a window of scratch memory; a segment's place is used again when it was delivered.
Schedule plan_reduce_chain(const CollectiveRequest& request, const PlanOptions& options) {
  Schedule schedule = make_schedule(request);
  const uint32_t number = number_of(request);
  const bool is_root = number == 0;
  const bool is_last = number == request.size - 1;
  const Region& input = request.inputs[0];
  const Segmentation segmentation = plan_chain_segments(request, input.length, options);
  const uint64_t segment_bytes = segmentation.segment_bytes;
  const bool needs_window = !is_root && (!is_last || has_prepare(request));
  const auto places = static_cast<uint32_t>(std::min<uint64_t>(
      std::max<uint64_t>(2, options.window_bytes / segment_bytes), segmentation.segments_max));
  const Region window = take_scratch(schedule, needs_window ? places * segment_bytes : 0);

  std::vector<uint32_t> last_reader(places, kNoStep);  // per place: the send that reads it
  for (uint32_t j = 0; j < segmentation.count(input); ++j) {
    Region value = segmentation.segment(input, j);
    const uint32_t place = j % places;
    const Region target = is_root ? segmentation.segment(request.outputs[0], j)
                                  : part_of(window, place * segment_bytes, value.length);
    uint32_t after = is_root ? kNoStep : last_reader[place];
    if (has_prepare(request)) {
      after = schedule.add(make_prepare(target, value), {after});
      value = target;
    }
    if (!is_last) {
      const uint32_t from = rank_of(request, number + 1);
      after = schedule.add(make_receive_reduce(from, j, target, value), {after});
      value = target;
    }
    if (!is_root) {
      const uint32_t to = rank_of(request, number - 1);
      const uint32_t sent = schedule.add(make_send(to, j, value), {after});
      if (value == target) last_reader[place] = sent;
    } else if (has_finish(request)) {
      schedule.add(make_finish(target), {after});
    }
  }
  return schedule;
}

}  // namespace securefabric::collective
