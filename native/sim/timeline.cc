#include "sim/timeline.h"

#include "base/check.h"

namespace securefabric::sim {

using base::Duration;
using base::Instant;

std::vector<TimedChange> expand(const LinkEvent& event) {
  std::vector<TimedChange> changes;
  const Instant begin = Instant() + event.at;
  const uint32_t steps = event.ramp > Duration() ? kRampSteps : 1;
  for (uint32_t step = 1; step <= steps; ++step) {
    const Duration passed = event.ramp * step / steps;
    for (const LinkEvent::Setting& setting : event.settings) {
      changes.push_back(
          {begin + passed, {event.links, setting.knob, setting.value, steps - step + 1}});
    }
  }
  if (event.flap <= Duration()) return changes;
  SF_CHECK((event.until - event.at).nanos() / event.flap.nanos() < kFlapsMax);
  const LinkKnob* down = find_link_knob("down");
  for (Duration at = event.at; at < event.until; at = at + event.flap) {
    const Duration up_at = base::shorter(at + event.flap / 2, event.until);
    changes.push_back({Instant() + at, {event.links, down, 1}});
    changes.push_back({Instant() + up_at, {event.links, down, 0}});
  }
  return changes;
}

}  // namespace securefabric::sim
