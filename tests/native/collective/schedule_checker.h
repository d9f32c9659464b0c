// A proof, for one set of schedules, that every legal order of execution gives the same result.
//
// Two events per step, its start and its completion, are ordered by what every executor keeps:
//
//   start of a step         after the completion of the steps it depends on
//   completion of a step    after its start
//   completion of a receive after the start of its send
//   completion of a send    after the completion of its receive, unless it is short and copied
//
// If these rules contradict each other the schedules deadlock. If two steps of a rank touch the
// same bytes, and one of them writes, one must end before the other begins to touch them; a receive
// touches nothing before its send has started, a send nothing after its receive is complete or, if
// it is copied, after its start.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "collective/schedule.h"

namespace securefabric::collective::testing {

// Set-wise reachability: which events are before an event.
class EventOrder {
 public:
  explicit EventOrder(size_t events)
      : words_((events + 63) / 64), after_(events), waits_(events), before_(events * words_) {}

  void add(size_t earlier, size_t later) {
    after_[earlier].push_back(later);
    ++waits_[later];
  }
  // False if the order has a cycle.
  [[nodiscard]] bool close() {
    std::vector<size_t> ready;
    for (size_t event = 0; event < waits_.size(); ++event) {
      if (waits_[event] == 0) ready.push_back(event);
    }
    size_t closed = 0;
    for (; closed < ready.size(); ++closed) {
      const size_t event = ready[closed];
      for (const size_t later : after_[event]) {
        for (size_t w = 0; w < words_; ++w) {
          before_[later * words_ + w] |= before_[event * words_ + w];
        }
        before_[later * words_ + event / 64] |= uint64_t{1} << (event % 64);
        if (--waits_[later] == 0) ready.push_back(later);
      }
    }
    return closed == waits_.size();
  }
  bool is_before(size_t earlier, size_t later) const {
    return (before_[later * words_ + earlier / 64] >> (earlier % 64) & 1) != 0;
  }

 private:
  size_t words_;                            // per event in before_
  std::vector<std::vector<size_t>> after_;  // direct successors
  std::vector<size_t> waits_;               // direct predecessors not closed yet
  std::vector<uint64_t> before_;            // bit set per event: all predecessors
};

class ScheduleChecker {
 public:
  ScheduleChecker(const std::vector<Schedule>& schedules, uint64_t copied_send_bytes)
      : schedules_(schedules), copied_send_bytes_(copied_send_bytes) {
    for (const Schedule& schedule : schedules) {
      first_step_.push_back(steps_);
      steps_ += schedule.steps.size();
    }
    partner_.assign(steps_, kNone);
  }

  // An empty string, or what is wrong.
  std::string check() {
    if (std::string error = pair_messages(); !error.empty()) return error;
    EventOrder order(2 * steps_);
    for (size_t rank = 0; rank < schedules_.size(); ++rank) add_events(order, rank);
    if (!order.close()) return "deadlock";
    for (size_t rank = 0; rank < schedules_.size(); ++rank) {
      if (std::string error = check_hazards(order, rank); !error.empty()) return error;
    }
    return {};
  }

 private:
  static constexpr size_t kNone = ~size_t{0};
  static size_t start(size_t step) { return 2 * step; }
  static size_t completion(size_t step) { return 2 * step + 1; }

  static std::string name(size_t rank, size_t index) {
    return "rank " + std::to_string(rank) + " step " + std::to_string(index);
  }

  // Every message has exactly one send and one receive, of equal length.
  std::string pair_messages() {
    std::map<std::tuple<size_t, size_t, uint32_t>, std::pair<size_t, uint64_t>> sends;
    for (size_t rank = 0; rank < schedules_.size(); ++rank) {
      const auto& steps = schedules_[rank].steps;
      for (size_t i = 0; i < steps.size(); ++i) {
        if (steps[i].kind != StepKind::kSend) continue;
        if (steps[i].peer >= schedules_.size() || steps[i].peer == rank) return "bad peer";
        const bool is_new = sends
                                .emplace(std::tuple(rank, steps[i].peer, steps[i].slot),
                                         std::pair(first_step_[rank] + i, steps[i].target.length))
                                .second;
        if (!is_new) return name(rank, i) + ": slot used twice";
      }
    }
    for (size_t rank = 0; rank < schedules_.size(); ++rank) {
      const auto& steps = schedules_[rank].steps;
      for (size_t i = 0; i < steps.size(); ++i) {
        if (!is_receive(steps[i].kind)) continue;
        const auto send = sends.find(std::tuple(steps[i].peer, rank, steps[i].slot));
        if (send == sends.end()) return name(rank, i) + ": receive without send, or second one";
        if (send->second.second != steps[i].target.length) return name(rank, i) + ": length";
        partner_[first_step_[rank] + i] = send->second.first;
        partner_[send->second.first] = first_step_[rank] + i;
        sends.erase(send);
      }
    }
    return sends.empty() ? std::string() : "a send has no receive";
  }

  bool is_copied(const Step& send) const { return send.target.length <= copied_send_bytes_; }

  void add_events(EventOrder& order, size_t rank) const {
    const Schedule& schedule = schedules_[rank];
    for (size_t i = 0; i < schedule.steps.size(); ++i) {
      const Step& step = schedule.steps[i];
      const size_t self = first_step_[rank] + i;
      order.add(start(self), completion(self));
      for (const uint32_t earlier : schedule.dependencies_of(step)) {
        order.add(completion(first_step_[rank] + earlier), start(self));
      }
      if (is_receive(step.kind)) order.add(start(partner_[self]), completion(self));
      if (step.kind == StepKind::kSend && !is_copied(step)) {
        order.add(completion(partner_[self]), completion(self));
      }
    }
  }

  static bool reads(const Step& step, const Region& region) {
    switch (step.kind) {
      case StepKind::kSend:
      case StepKind::kFinish: return step.target.overlaps(region);
      case StepKind::kReceiveCopy: return false;
      case StepKind::kReceiveReduce:
      case StepKind::kCopy:
      case StepKind::kPrepare: return step.operand.overlaps(region);
    }
    return true;
  }
  static bool writes(const Step& step, const Region& region) {
    return step.kind != StepKind::kSend && step.target.overlaps(region);
  }

  // Whether `a`, the earlier one in the schedule, no longer touches memory when `b` begins to.
  bool is_separated(const EventOrder& order, const Step& step_a, size_t a, const Step& step_b,
                    size_t b) const {
    size_t end = completion(a);
    if (step_a.kind == StepKind::kSend)
      end = is_copied(step_a) ? start(a) : completion(partner_[a]);
    return order.is_before(end, start(b)) ||
           (is_receive(step_b.kind) && order.is_before(end, start(partner_[b])));
  }

  std::string check_hazards(const EventOrder& order, size_t rank) const {
    const auto& steps = schedules_[rank].steps;
    for (size_t b = 0; b < steps.size(); ++b) {
      for (size_t a = 0; a < b; ++a) {
        const bool conflict =
            (steps[a].kind != StepKind::kSend &&
             (reads(steps[b], steps[a].target) || writes(steps[b], steps[a].target))) ||
            (steps[b].kind != StepKind::kSend && reads(steps[a], steps[b].target));
        if (!conflict) continue;
        const size_t first = first_step_[rank];
        if (!is_separated(order, steps[a], first + a, steps[b], first + b)) {
          return name(rank, b) + " may touch memory before step " + std::to_string(a) + " is done";
        }
      }
    }
    return {};
  }

  const std::vector<Schedule>& schedules_;  // one per rank
  uint64_t copied_send_bytes_;              // longest send that is complete at once
  std::vector<size_t> first_step_;          // per rank: its steps' first global number
  size_t steps_ = 0;                        // of all ranks
  std::vector<size_t> partner_;             // per network step: the other end's global number
};

}  // namespace securefabric::collective::testing
