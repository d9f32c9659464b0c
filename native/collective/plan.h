// The front door of the planners: what is asked for, and the schedule of one rank for it.
//
//   CollectiveRequest --plan()--> chooses by size (plan_options.h) --plan_<algorithm>()--> Schedule
//
// Planning is pure: no state, no clock, no I/O. Ranks, always group ranks, plan alone and their
// schedules fit because everything that shapes messages (kind, lengths, root, options) is equal on
// all of them. Which buffers alias is a rank's own business and shapes no message.
#pragma once

#include <cstdint>
#include <vector>

#include "collective/plan_options.h"
#include "collective/schedule.h"
#include "collective/types.h"

namespace securefabric::collective {

// Which regions a kind takes ("n" is one per rank of the group, in order of ranks; lengths of the
// n regions may differ and may be zero):
//
//   kind             inputs                outputs               may be the same region
//   kAllReduce       1                     1                     input and output
//   kBroadcast       1 at the root         1                     input and output at the root
//   kReduce          1                     1 at the root         input and output at the root
//   kAllGather       1                     n                     input and outputs[rank]
//   kReduceScatter   n                     1                     inputs[rank] and output
//   kAllToAll        n                     n                     -
//   kGather          1                     n at the root         input and outputs[rank]
//   kScatter         n at the root         1                     inputs[rank] and output
//   kBarrier         -                     -
//   kSend, kReceive  1 / -                 - / 1                 `root` is the peer, or kAnySource
//
// Apart from the last column no output overlaps an input or another output, and inputs are only
// read. Regions that a kind does not take on this rank are ignored: a rank that is not the root may
// pass what it has.
struct CollectiveRequest {
  OperationKind kind = OperationKind::kBarrier;  // see the table
  ReduceOp reduce_op = ReduceOp::kNone;          // AVG adds kFinish steps, PREMUL_SUM kPrepare
  uint32_t element_bytes = 1;                    // 1, 2, 4, 8 or 16; cuts never divide an element
  uint32_t rank = 0;                             // who plans
  uint32_t size = 1;                             // ranks in the group
  uint32_t root = 0;                             // of rooted kinds; the peer of kSend and kReceive
  std::vector<Region> inputs = {};               // see the table
  std::vector<Region> outputs = {};              // see the table
  uint32_t scratch_buffer = 0;                   // the index scratch memory will have
};

// A request that breaks the table is our bug (SF_CHECK): the caller has validated the tensors.
//
// Data of no length is not sent, except by kBarrier, kSend and kReceive, whose messages mean
// something all the same. With one rank nothing is sent: AVG is then a copy.
Schedule plan(const CollectiveRequest& request, const PlanOptions& options = {});

}  // namespace securefabric::collective
