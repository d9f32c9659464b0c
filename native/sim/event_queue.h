// What will happen in virtual time, in order: by instant, and in the order of scheduling inside one
// instant, so that the same calls always give the same order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/time.h"

namespace securefabric::sim {

template <typename EventT>
class EventQueue {
 public:
  void push(base::Instant at, EventT event) {
    heap_.push_back(Entry{at, next_order_++, std::move(event)});
    std::push_heap(heap_.begin(), heap_.end(), is_later);
  }

  bool empty() const { return heap_.empty(); }
  size_t size() const { return heap_.size(); }
  // Never when empty.
  base::Instant next_at() const {
    return heap_.empty() ? base::Instant::never() : heap_.front().at;
  }

  EventT pop() {
    SF_CHECK(!heap_.empty());
    std::pop_heap(heap_.begin(), heap_.end(), is_later);
    EventT event = std::move(heap_.back().event);
    heap_.pop_back();
    return event;
  }

 private:
  struct Entry {
    base::Instant at;    // when
    uint64_t order = 0;  // of scheduling; breaks ties
    EventT event;        // what
  };
  static bool is_later(const Entry& a, const Entry& b) {
    return a.at != b.at ? a.at > b.at : a.order > b.order;
  }

  std::vector<Entry> heap_;  // binary heap, earliest in front
  uint64_t next_order_ = 0;  // of the next push
};

}  // namespace securefabric::sim
