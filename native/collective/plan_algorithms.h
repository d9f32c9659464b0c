// One function per algorithm; plan() chooses among them, tests name them.
//
// All of them expect a request that plan() has checked, with at least two ranks, and all of them
// work at every size; each explains itself above its body.
#pragma once

#include "collective/plan.h"

namespace securefabric::collective {

// plan_all_reduce.cc
Schedule plan_all_reduce_doubling(const CollectiveRequest& request, const PlanOptions& options);
Schedule plan_all_reduce_ring(const CollectiveRequest& request, const PlanOptions& options);
// plan_reduce_scatter.cc
Schedule plan_reduce_scatter_direct(const CollectiveRequest& request, const PlanOptions& options);
Schedule plan_reduce_scatter_ring(const CollectiveRequest& request, const PlanOptions& options);
// plan_all_gather.cc
Schedule plan_all_gather_direct(const CollectiveRequest& request, const PlanOptions& options);
Schedule plan_all_gather_bruck(const CollectiveRequest& request, const PlanOptions& options);
Schedule plan_all_gather_ring(const CollectiveRequest& request, const PlanOptions& options);
// plan_rooted.cc
Schedule plan_broadcast_tree(const CollectiveRequest& request, const PlanOptions& options);
Schedule plan_broadcast_chain(const CollectiveRequest& request, const PlanOptions& options);
Schedule plan_reduce_tree(const CollectiveRequest& request, const PlanOptions& options);
Schedule plan_reduce_chain(const CollectiveRequest& request, const PlanOptions& options);
// plan_exchange.cc
Schedule plan_gather(const CollectiveRequest& request, const PlanOptions& options);
Schedule plan_scatter(const CollectiveRequest& request, const PlanOptions& options);
Schedule plan_all_to_all(const CollectiveRequest& request, const PlanOptions& options);
Schedule plan_barrier(const CollectiveRequest& request);
Schedule plan_point_to_point(const CollectiveRequest& request);

}  // namespace securefabric::collective
