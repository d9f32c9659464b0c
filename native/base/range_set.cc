#include "base/range_set.h"

#include <limits>

namespace securefabric::base {

bool RangeSet::contains(uint64_t value) const {
  return value != std::numeric_limits<uint64_t>::max() && covers(value, value + 1);
}

bool RangeSet::covers(uint64_t begin, uint64_t end) const {
  if (begin >= end) return true;
  if (ends_.empty()) return false;
  auto holder = std::prev(ends_.end());
  if (holder->first > begin) {
    holder = ends_.upper_bound(begin);
    if (holder == ends_.begin()) return false;
    --holder;
  }
  return end <= holder->second;
}

std::vector<RangeSet::Range> RangeSet::ranges() const {
  std::vector<Range> ranges;
  ranges.reserve(ends_.size());
  for (const auto& [begin, end] : ends_) ranges.push_back({begin, end});
  return ranges;
}

}  // namespace securefabric::base
