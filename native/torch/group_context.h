// What the calls of one group share, and their works with them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "collective/stripes.h"
#include "net/fabric.h"

namespace securefabric::torch_room {

class IssueQueue;
class WorkLedger;

struct GroupContext {
  std::shared_ptr<net::Fabric> fabric;
  net::Fabric::Groups groups;  // this group in each engine
  std::shared_ptr<WorkLedger> ledger;
  std::shared_ptr<IssueQueue> queue;
  std::string presented_name;                        // the backend's, in profiler events
  bool stages_host_tensors = false;                  // treats them as if a device had them (tests)
  uint64_t stripe_bytes = collective::kStripeBytes;  // see collective/stripes.h

  // What it is in any engine: its members and name. `broken` is guarded by the first one.
  const collective::Group& group() const { return *groups.front(); }
  // "process group 'name' on rank 3", which is the rank in the world.
  std::string describe() const {
    return "process group '" + group().name + "' on rank " +
           std::to_string(group().ranks[group().rank].value);
  }
};

}  // namespace securefabric::torch_room
