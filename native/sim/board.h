// The bulletin board of the simulated job: where ranks publish their roster entries and look for
// those of others. It is trusted here; what a hostile store may do is tested where the evidence is
// verified (securefabric/roster.py).
#pragma once

#include <map>
#include <vector>

#include "base/ids.h"
#include "transport/message.h"

namespace securefabric::sim {

class Board {
 public:
  // Returns the ranks that were waiting for this entry, in the order in which they asked.
  std::vector<base::Rank> publish(const transport::PeerDescription& entry);
  // Null when the rank has not published yet; `asking` will be told when it does.
  const transport::PeerDescription* look_up(base::Rank asking, base::Rank wanted);
  const transport::PeerDescription& at(base::Rank rank) const { return entries_.at(rank); }

 private:
  std::map<base::Rank, transport::PeerDescription> entries_;  // as published
  std::map<base::Rank, std::vector<base::Rank>> waiting_;     // by the wanted rank
};

}  // namespace securefabric::sim
