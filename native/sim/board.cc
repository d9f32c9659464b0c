#include "sim/board.h"

#include <algorithm>

namespace securefabric::sim {

using base::Rank;

std::vector<Rank> Board::publish(const transport::PeerDescription& entry) {
  entries_[entry.rank] = entry;
  const auto waiting = waiting_.find(entry.rank);
  if (waiting == waiting_.end()) return {};
  std::vector<Rank> askers = std::move(waiting->second);
  waiting_.erase(waiting);
  return askers;
}

const transport::PeerDescription* Board::look_up(Rank asking, Rank wanted) {
  if (const auto at = entries_.find(wanted); at != entries_.end()) return &at->second;
  std::vector<Rank>& askers = waiting_[wanted];
  if (std::find(askers.begin(), askers.end(), asking) == askers.end()) askers.push_back(asking);
  return nullptr;
}

}  // namespace securefabric::sim
