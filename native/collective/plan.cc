// Checks the request, handles the rank that is alone, and chooses the algorithm by size.
#include "collective/plan.h"

#include <algorithm>
#include <bit>

#include "base/check.h"
#include "collective/plan_algorithms.h"
#include "collective/plan_parts.h"
#include "transport/limits.h"

namespace securefabric::collective {
namespace {

static_assert(PlanOptions{}.copied_send_bytes <= transport::kCopiedMessageBytesMax);
// A direct reduce_scatter posts its receives one by one, and the others' messages arrive before.
static_assert(PlanOptions{}.reduce_scatter_direct_bytes <= transport::kEagerMessageBytesMax);

// How many regions the kind takes here.
struct Arity {
  uint32_t inputs = 0;   // regions read
  uint32_t outputs = 0;  // regions written
};

Arity arity_of(const CollectiveRequest& request) {
  const uint32_t all = request.size;
  const bool is_root = request.rank == request.root;
  const uint32_t one_at_root = is_root ? 1 : 0;
  const uint32_t all_at_root = is_root ? all : 0;
  switch (request.kind) {
    case OperationKind::kAllReduce: return {1, 1};
    case OperationKind::kBroadcast: return {one_at_root, 1};
    case OperationKind::kReduce: return {1, one_at_root};
    case OperationKind::kAllGather: return {1, all};
    case OperationKind::kReduceScatter: return {all, 1};
    case OperationKind::kAllToAll: return {all, all};
    case OperationKind::kGather: return {1, all_at_root};
    case OperationKind::kScatter: return {all_at_root, 1};
    case OperationKind::kBarrier: return {0, 0};
    case OperationKind::kSend: return {1, 0};
    case OperationKind::kReceive: return {0, 1};
  }
  SF_CHECK_MSG(false, "kind " + std::to_string(static_cast<int>(request.kind)));
}

bool is_point_to_point(OperationKind kind) {
  return kind == OperationKind::kSend || kind == OperationKind::kReceive;
}

bool is_reduction(OperationKind kind) {
  return kind == OperationKind::kAllReduce || kind == OperationKind::kReduce ||
         kind == OperationKind::kReduceScatter;
}

void check_region(const CollectiveRequest& request, const Region& region) {
  SF_CHECK(region.buffer != request.scratch_buffer || region.length == 0);
  SF_CHECK_MSG(
      region.length % request.element_bytes == 0 && region.offset <= region.offset + region.length,
      std::to_string(region.offset) + " + " + std::to_string(region.length));
}

void check_count(const std::vector<Region>& regions, uint32_t taken) {
  SF_CHECK_MSG(taken <= 1 ? regions.size() >= taken : regions.size() == taken,
               std::to_string(regions.size()) + " for " + std::to_string(taken));
}

// The one input that becomes the one output, on this rank: equal in length, and the same region or
// disjoint.
void check_own(const Region& input, const Region& output) {
  SF_CHECK_MSG(input.length == output.length,
               std::to_string(input.length) + " != " + std::to_string(output.length));
  SF_CHECK(input == output || !input.overlaps(output));
}

void check_request(const CollectiveRequest& request, const PlanOptions& options) {
  const bool is_any_source =  // kAnySource of operation.h
      request.kind == OperationKind::kReceive && request.root == UINT32_MAX;
  SF_CHECK_MSG(request.rank < request.size && (request.root < request.size || is_any_source),
               std::to_string(request.rank) + ", " + std::to_string(request.root) + " of " +
                   std::to_string(request.size));
  SF_CHECK(!is_point_to_point(request.kind) || request.root != request.rank);
  SF_CHECK(std::has_single_bit(request.element_bytes) && request.element_bytes <= 16);
  SF_CHECK(is_reduction(request.kind) == (request.reduce_op != ReduceOp::kNone));
  SF_CHECK(options.segments_per_chunk > 0 &&
           options.segment_bytes_min <= options.segment_bytes_max);
  const Arity arity = arity_of(request);
  check_count(request.inputs, arity.inputs);
  check_count(request.outputs, arity.outputs);
  for (uint32_t i = 0; i < arity.inputs; ++i) check_region(request, request.inputs[i]);
  for (uint32_t i = 0; i < arity.outputs; ++i) check_region(request, request.outputs[i]);
  if (arity.inputs > 0 && arity.outputs > 0) {
    check_own(request.inputs[arity.inputs > 1 ? request.rank : 0],
              request.outputs[arity.outputs > 1 ? request.rank : 0]);
  }
}

// A group of one: the input becomes the output. An average over one rank divides nothing.
Schedule plan_alone(const CollectiveRequest& request, const PlanOptions& options) {
  Schedule schedule = make_schedule(request);
  if (request.kind == OperationKind::kBarrier) return schedule;
  const Region& input = request.inputs[0];
  const Region& output = request.outputs[0];
  if (!has_prepare(request)) {
    add_copy(schedule, output, input, options);
  } else if (output.length > 0) {
    schedule.add(make_prepare(output, input));
  }
  return schedule;
}

// Every number compared here is the same on all ranks; lengths that are one rank's own are not
// (see reduce_scatter: all inputs together are, its output is not).
bool is_small(const CollectiveRequest& request, const PlanOptions& options) {
  switch (request.kind) {
    case OperationKind::kAllReduce:
      return request.inputs[0].length <=
             std::max(options.all_reduce_doubling_bytes,
                      options.all_reduce_doubling_bytes_per_rank * request.size);
    case OperationKind::kBroadcast:
    case OperationKind::kReduce: {
      const bool is_broadcast = request.kind == OperationKind::kBroadcast;
      const Region& data = is_broadcast ? request.outputs[0] : request.inputs[0];
      return request.size == 2 || data.length <= options.tree_bytes_per_rank * request.size;
    }
    case OperationKind::kAllGather:
      return total_length(request.outputs) <= options.all_gather_bruck_bytes;
    case OperationKind::kReduceScatter:
      return longest_length(request.inputs) <= options.reduce_scatter_direct_bytes;
    default: return true;  // one algorithm serves all sizes
  }
}

}  // namespace

Schedule plan(const CollectiveRequest& request, const PlanOptions& options) {
  check_request(request, options);
  if (is_point_to_point(request.kind)) return plan_point_to_point(request);
  if (request.size == 1) return plan_alone(request, options);
  const bool small = is_small(request, options);
  switch (request.kind) {
    case OperationKind::kAllReduce:
      return small ? plan_all_reduce_doubling(request, options)
                   : plan_all_reduce_ring(request, options);
    case OperationKind::kBroadcast:
      return small ? plan_broadcast_tree(request, options) : plan_broadcast_chain(request, options);
    case OperationKind::kReduce:
      return small ? plan_reduce_tree(request, options) : plan_reduce_chain(request, options);
    case OperationKind::kAllGather:
      if (!small) return plan_all_gather_ring(request, options);
      return request.size <= options.all_gather_direct_ranks
                 ? plan_all_gather_direct(request, options)
                 : plan_all_gather_bruck(request, options);
    case OperationKind::kReduceScatter:
      return small ? plan_reduce_scatter_direct(request, options)
                   : plan_reduce_scatter_ring(request, options);
    case OperationKind::kAllToAll: return plan_all_to_all(request, options);
    case OperationKind::kGather: return plan_gather(request, options);
    case OperationKind::kScatter: return plan_scatter(request, options);
    case OperationKind::kBarrier: return plan_barrier(request);
    case OperationKind::kSend:
    case OperationKind::kReceive: break;
  }
  SF_CHECK_MSG(false, "kind " + std::to_string(static_cast<int>(request.kind)));
}

}  // namespace securefabric::collective
