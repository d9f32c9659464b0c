// A set of uint64 kept as sorted, disjoint, non-adjacent half-open ranges. The largest uint64
// cannot be a member, for no half-open range ends behind it.
//
// Used where the set stays nearly contiguous: bytes of a message that arrived, message ids that
// were completed. In the common case there is one range and every call is O(1); otherwise a call
// takes the logarithm of the number of ranges, which the caller bounds: a peer that leaves holes
// costs memory, but not time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <utility>
#include <vector>

namespace securefabric::base {

class RangeSet {
 public:
  struct Range {
    uint64_t begin = 0;  // first member
    uint64_t end = 0;    // one past the last member; begin < end
    bool operator==(const Range&) const = default;
  };

  // Adds [begin, end) and calls `on_new(begin, end)` for each maximal part that was not there yet,
  // in ascending order. An empty range adds nothing.
  template <typename OnNew>
  void insert(uint64_t begin, uint64_t end, OnNew&& on_new) {
    if (begin >= end) return;
    auto at = first_reaching(begin);
    uint64_t cursor = begin;
    uint64_t merged_begin = begin;
    uint64_t merged_end = end;
    while (at != ends_.end() && at->first <= end) {
      if (cursor < at->first) on_new(cursor, at->first);
      cursor = std::max(cursor, at->second);
      merged_end = std::max(merged_end, at->second);
      if (at->first <= begin) {  // the first one keeps its node
        merged_begin = at->first;
        ++at;
      } else {
        at = ends_.erase(at);
      }
    }
    if (cursor < end) on_new(cursor, end);
    ends_.insert_or_assign(at, merged_begin, merged_end);
  }
  void insert(uint64_t begin, uint64_t end) {
    insert(begin, end, [](uint64_t, uint64_t) {});
  }

  bool contains(uint64_t value) const;
  // True when every member of [begin, end) is present; true for an empty range.
  bool covers(uint64_t begin, uint64_t end) const;
  bool empty() const { return ends_.empty(); }
  size_t count() const { return ends_.size(); }  // of ranges
  std::vector<Range> ranges() const;             // ascending
  void clear() { ends_.clear(); }

 private:
  using Ends = std::map<uint64_t, uint64_t>;  // of each range, by its beginning

  // The first range whose end is >= value (touching counts), or the end.
  Ends::iterator first_reaching(uint64_t value) {
    // The newest range is the usual answer, so look there before searching.
    if (ends_.empty()) return ends_.end();
    if (const auto last = std::prev(ends_.end()); last->first <= value) {
      return last->second >= value ? last : ends_.end();
    }
    const auto above = ends_.upper_bound(value);
    if (above == ends_.begin()) return above;
    const auto below = std::prev(above);
    return below->second >= value ? below : above;
  }

  Ends ends_;  // neighbours do not touch
};

}  // namespace securefabric::base
