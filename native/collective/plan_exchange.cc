// The kinds whose every message goes straight from its source to its destination.
//
// Where a rank has many peers it takes them in an order that starts at its neighbour, so that not
// everybody serves rank 0 first. Messages are not cut: nothing waits for a part of one.
#include "collective/plan_algorithms.h"
#include "collective/plan_parts.h"

namespace securefabric::collective {
namespace {

void add_send(Schedule& schedule, uint32_t peer, const Region& source) {
  if (source.length > 0) schedule.add(make_send(peer, 0, source));
}
void add_receive(Schedule& schedule, uint32_t peer, const Region& target) {
  if (target.length > 0) schedule.add(make_receive(peer, 0, target));
}

}  // namespace

Schedule plan_gather(const CollectiveRequest& request, const PlanOptions& options) {
  Schedule schedule = make_schedule(request);
  if (request.rank != request.root) {
    add_send(schedule, request.root, request.inputs[0]);
    return schedule;
  }
  for (uint32_t distance = 1; distance < request.size; ++distance) {
    const uint32_t peer = rank_at(request, distance);
    add_receive(schedule, peer, request.outputs[peer]);
  }
  add_copy(schedule, request.outputs[request.rank], request.inputs[0], options);
  return schedule;
}

Schedule plan_scatter(const CollectiveRequest& request, const PlanOptions& options) {
  Schedule schedule = make_schedule(request);
  if (request.rank != request.root) {
    add_receive(schedule, request.root, request.outputs[0]);
    return schedule;
  }
  for (uint32_t distance = 1; distance < request.size; ++distance) {
    const uint32_t peer = rank_at(request, distance);
    add_send(schedule, peer, request.inputs[peer]);
  }
  add_copy(schedule, request.outputs[0], request.inputs[request.rank], options);
  return schedule;
}

// Pairwise: a rank sends to the ranks after it, nearest first, and expects the ranks before it,
// nearest first: if all keep pace, each rank serves one peer and is served by one at any time.
Schedule plan_all_to_all(const CollectiveRequest& request, const PlanOptions& options) {
  Schedule schedule = make_schedule(request);
  for (uint32_t distance = 1; distance < request.size; ++distance) {
    const uint32_t to = rank_at(request, distance);
    const uint32_t from = rank_at(request, -int64_t{distance});
    add_receive(schedule, from, request.outputs[from]);
    add_send(schedule, to, request.inputs[to]);
  }
  add_copy(schedule, request.outputs[request.rank], request.inputs[request.rank], options);
  return schedule;
}

// Dissemination (Hensgen, Finkel and Manber, 1988). In round i a rank tells the rank 2^i after it
// that it, and everybody it has heard of, has arrived; after log2(size) rounds, rounded up, it has
// heard of all. The messages are empty.
Schedule plan_barrier(const CollectiveRequest& request) {
  Schedule schedule = make_schedule(request);
  std::vector<uint32_t> heard;  // the receives of the rounds so far
  for (uint32_t distance = 1, round = 0; distance < request.size; distance *= 2, ++round) {
    schedule.add(make_send(rank_at(request, distance), round, Region{}), heard);
    heard.push_back(
        schedule.add(make_receive(rank_at(request, -int64_t{distance}), round, Region{})));
  }
  return schedule;
}

// One message, also if it is empty: the other end waits for it, and may have to learn who sent it.
Schedule plan_point_to_point(const CollectiveRequest& request) {
  Schedule schedule = make_schedule(request);
  schedule.add(request.kind == OperationKind::kSend
                   ? make_send(request.root, 0, request.inputs[0])
                   : make_receive(request.root, 0, request.outputs[0]));
  return schedule;
}

}  // namespace securefabric::collective
