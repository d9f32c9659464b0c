// A set of uint64 kept as sorted, disjoint, non-adjacent half-open ranges. The largest uint64
// cannot be a member, for no half-open range ends behind it.
//
// Used where the set stays nearly contiguous: bytes of a message that arrived, message ids that
// were completed. In the common case there is one range and every call is O(1); `insert` is
// O(ranges) otherwise, and the caller bounds the number of ranges.
#pragma once

#include <cstddef>
#include <cstdint>
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
    size_t first = first_reaching(begin);
    uint64_t cursor = begin;
    size_t last = first;
    for (; last < ranges_.size() && ranges_[last].begin <= end; ++last) {
      if (cursor < ranges_[last].begin) on_new(cursor, ranges_[last].begin);
      if (ranges_[last].end > cursor) cursor = ranges_[last].end;
    }
    if (cursor < end) on_new(cursor, end);
    replace(first, last, begin, end);
  }
  void insert(uint64_t begin, uint64_t end) {
    insert(begin, end, [](uint64_t, uint64_t) {});
  }

  bool contains(uint64_t value) const;
  // True when every member of [begin, end) is present; true for an empty range.
  bool covers(uint64_t begin, uint64_t end) const;
  bool empty() const { return ranges_.empty(); }
  const std::vector<Range>& ranges() const { return ranges_; }
  void clear() { ranges_.clear(); }

 private:
  // Index of the first range whose end is >= value (touching counts), or ranges_.size().
  size_t first_reaching(uint64_t value) const;
  // Replaces ranges_[first, last) by their union with [begin, end).
  void replace(size_t first, size_t last, uint64_t begin, uint64_t end);

  std::vector<Range> ranges_;  // sorted; neighbours do not touch
};

}  // namespace securefabric::base
