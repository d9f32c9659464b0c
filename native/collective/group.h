// A process group as the engine sees it: who is in it, and whether it still works.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "wire/frames.h"

namespace securefabric::collective {

struct Group {
  uint64_t wire_id = 0;           // names the group in frames; equal on all members
  wire::GroupTail tail{};         // tells groups apart that have one id; likewise
  uint32_t engine = 0;            // of this rank's, in which this object lives
  std::string name;               // for messages
  uint32_t rank = 0;              // of this process inside the group
  std::vector<base::Rank> ranks;  // global rank of each group rank
  // Set by the first failure: every later operation of the group fails at once with it, because
  // ranks no longer agree which operation is which.
  std::optional<base::Error> broken;

  uint32_t size() const { return static_cast<uint32_t>(ranks.size()); }
};

// A group was broken in one of this rank's engines, and has to be in the others.
struct GroupBroken {
  uint64_t wire_id = 0;             // of the group
  base::Error error;                // what its operations fail with
  std::optional<base::Error> told;  // what the members are told, if anything
};

}  // namespace securefabric::collective
