// Links that change on the fly: an event of a scenario, and the steps it is made of.
#pragma once

#include <vector>

#include "base/time.h"
#include "sim/network.h"

namespace securefabric::sim {

struct LinkEvent {
  struct Setting {
    const LinkKnob* knob = nullptr;  // of link_knobs()
    double value = 0;                // within the knob's bounds
  };
  base::Duration at;              // since the start
  LinkSelector links;             // which ones
  std::vector<Setting> settings;  // what they become
  base::Duration ramp;            // time over which they become so, evenly; 0: at once
  base::Duration flap;            // down for half of this time, up for the other, and so on; 0: no
  base::Duration until;           // end of the flapping: up
};

struct TimedChange {
  base::Instant at;
  LinkChange change;
};

// Steps of a ramp; enough that no step is a fault of its own.
inline constexpr uint32_t kRampSteps = 32;
// Times that one event may let a link go down.
inline constexpr int64_t kFlapsMax = 100'000;

// What the event does, in order.
std::vector<TimedChange> expand(const LinkEvent& event);

}  // namespace securefabric::sim
