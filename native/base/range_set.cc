#include "base/range_set.h"

#include <algorithm>
#include <limits>

namespace securefabric::base {

size_t RangeSet::first_reaching(uint64_t value) const {
  // The newest range is the usual answer, so look there before searching.
  if (!ranges_.empty() && ranges_.back().begin <= value && value <= ranges_.back().end) {
    return ranges_.size() - 1;
  }
  const auto at = std::lower_bound(ranges_.begin(), ranges_.end(), value,
                                   [](const Range& r, uint64_t v) { return r.end < v; });
  return static_cast<size_t>(at - ranges_.begin());
}

void RangeSet::replace(size_t first, size_t last, uint64_t begin, uint64_t end) {
  if (first == last) {
    ranges_.insert(ranges_.begin() + static_cast<ptrdiff_t>(first), Range{begin, end});
    return;
  }
  ranges_[first].begin = std::min(ranges_[first].begin, begin);
  ranges_[first].end = std::max(ranges_[last - 1].end, end);
  ranges_.erase(ranges_.begin() + static_cast<ptrdiff_t>(first) + 1,
                ranges_.begin() + static_cast<ptrdiff_t>(last));
}

bool RangeSet::contains(uint64_t value) const {
  return value != std::numeric_limits<uint64_t>::max() && covers(value, value + 1);
}

bool RangeSet::covers(uint64_t begin, uint64_t end) const {
  if (begin >= end) return true;
  const size_t at = first_reaching(begin);
  if (at == ranges_.size()) return false;
  // first_reaching may return a range that only touches `begin` from the left.
  const size_t holder = ranges_[at].end == begin ? at + 1 : at;
  if (holder == ranges_.size()) return false;
  return ranges_[holder].begin <= begin && end <= ranges_[holder].end;
}

}  // namespace securefabric::base
