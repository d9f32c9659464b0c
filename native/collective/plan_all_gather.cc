#include <algorithm>

#include "collective/plan_algorithms.h"
#include "collective/plan_parts.h"

namespace securefabric::collective {

// Direct. Every rank sends its chunk to every other: one hop, no copies, size-1 messages each way.
Schedule plan_all_gather_direct(const CollectiveRequest& request, const PlanOptions& options) {
  Schedule schedule = make_schedule(request);
  const Region& input = request.inputs[0];
  for (uint32_t distance = 1; distance < request.size && input.length > 0; ++distance) {
    schedule.add(make_send(rank_at(request, distance), 0, input));
  }
  for (uint32_t distance = 1; distance < request.size; ++distance) {
    const uint32_t peer = rank_at(request, -int64_t{distance});
    const Region& output = request.outputs[peer];
    if (output.length > 0) schedule.add(make_receive(peer, 0, output));
  }
  add_copy(schedule, request.outputs[request.rank], input, options);
  return schedule;
}

namespace {

// Adds copies from consecutive bytes of scratch memory to the chunks' outputs. Outputs that follow
// one another in memory are filled by one step.
void add_unpacking(Schedule& schedule, Region source, std::span<const Region> targets,
                   uint32_t after) {
  uint64_t taken = 0;
  for (size_t first = 0, last = 0; first < targets.size(); first = last) {
    Region target = targets[first];
    for (last = first + 1; last < targets.size(); ++last) {
      const Region& follower = targets[last];
      if (follower.buffer != target.buffer || follower.offset != target.offset + target.length) {
        break;
      }
      target.length += follower.length;
    }
    if (target.length > 0) {
      schedule.add(make_copy(target, part_of(source, taken, target.length)), {after});
    }
    taken += target.length;
  }
}

}  // namespace

// Bruck's algorithm (Bruck et al., 1997). A rank gathers the chunks in the order own, next, next
// but one, ...: it holds 1 chunk, then 2, then 4. When it holds `held` of them it sends those that
// are still missing there, at most all, to the rank `held` before it, and receives as many from the
// rank `held` after it: log2(size) rounds, rounded up, for any number of ranks. The chunks of a
// round make one message, because they lie one after another in scratch memory; from there they are
// copied to the outputs. (Whether outputs follow one another may differ from rank to rank and must
// not shape messages.)
Schedule plan_all_gather_bruck(const CollectiveRequest& request, const PlanOptions& options) {
  Schedule schedule = make_schedule(request);
  const uint32_t size = request.size;
  std::vector<Region> chunks;             // the outputs in the order in which they are gathered
  std::vector<uint64_t> packed_begin{0};  // where each lies in scratch memory
  for (uint32_t i = 0; i < size; ++i) {
    chunks.push_back(request.outputs[rank_at(request, i)]);
    packed_begin.push_back(packed_begin.back() + chunks.back().length);
  }
  const Region packed = take_scratch(schedule, packed_begin.back());
  const Region& input = request.inputs[0];
  std::vector<uint32_t> held_after;  // the steps that brought what is held
  if (input.length > 0) {
    held_after.push_back(schedule.add(make_copy(part_of(packed, 0, input.length), input)));
  }
  for (uint32_t held = 1, slot = 0; held < size; held *= 2, ++slot) {
    const uint32_t count = std::min(held, size - held);
    if (packed_begin[count] > 0) {
      schedule.add(make_send(rank_at(request, -int64_t{held}), slot,
                             part_of(packed, 0, packed_begin[count])),
                   held_after);
    }
    const Region arriving =
        part_of(packed, packed_begin[held], packed_begin[held + count] - packed_begin[held]);
    if (arriving.length == 0) continue;
    const uint32_t received = schedule.add(make_receive(rank_at(request, held), slot, arriving));
    held_after.push_back(received);
    add_unpacking(schedule, arriving, std::span(chunks).subspan(held, count), received);
  }
  add_copy(schedule, request.outputs[request.rank], input, options);
  return schedule;
}

// Ring. At position 0 a rank sends its own chunk to the next rank, and at position i it receives
// from the previous rank the chunk that lies i before its own, and sends it on, segment by segment.
// Its own chunk is copied to the output beside that, each segment when one has arrived, so that the
// copy does not keep the engine from the network.
Schedule plan_all_gather_ring(const CollectiveRequest& request, const PlanOptions& options) {
  Schedule schedule = make_schedule(request);
  const uint32_t size = request.size;
  const Segmentation segmentation = plan_segments(
      longest_length(request.outputs), options.segments_per_chunk, 2 * uint64_t{size}, options);
  const uint32_t segments = segmentation.segments_max;
  const Region& input = request.inputs[0];
  const Region& own = request.outputs[request.rank];

  for (uint32_t j = 0; j < segmentation.count(input); ++j) {
    schedule.add(make_send(rank_at(request, 1), request.rank * segments + j,
                           segmentation.segment(input, j)));
  }
  for (uint32_t position = 1; position < size; ++position) {
    const uint32_t chunk = rank_at(request, -int64_t{position});
    const uint32_t count = segmentation.count(request.outputs[chunk]);
    for (uint32_t j = 0; j < segments; ++j) {
      uint32_t received = kNoStep;
      if (j < count) {
        const Region target = segmentation.segment(request.outputs[chunk], j);
        const uint32_t slot = chunk * segments + j;
        received = schedule.add(make_receive(rank_at(request, -1), slot, target));
        if (position < size - 1) {
          schedule.add(make_send(rank_at(request, 1), slot, target), {received});
        }
      }
      if (position == 1 && own != input && j < segmentation.count(own)) {
        schedule.add(make_copy(segmentation.segment(own, j), segmentation.segment(input, j)),
                     {received});
      }
    }
  }
  return schedule;
}

}  // namespace securefabric::collective
