// Everything about a scenario that has a name: one table for command lines, scenario files, bounds
// and the text that replays a run; and events as text.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "sim/scenario.h"

namespace securefabric::sim {

struct ScenarioKnob {
  std::string section;    // of a scenario file: "link"
  std::string name;       // in this section: "rate_mbit"
  std::string flag;       // unique: "rate_mbit", of a receiver's port "in_rate_mbit"
  std::string help;       // for the command line
  double min = 0;         // least value
  double max = 0;         // largest value
  bool is_whole = false;  // fractions are refused
  std::function<double(const ScenarioOptions&)> read;
  std::function<void(ScenarioOptions&, double)> write;
};

// In the order in which they are shown.
const std::vector<ScenarioKnob>& scenario_knobs();
// "loss must be 0 to 1".
std::string describe_bounds(const ScenarioKnob& knob);
// kConfig when no knob has this flag or the value is out of bounds.
base::Status set_knob(ScenarioOptions& options, std::string_view flag, double value);

// "at_ms=500 link=1 down=1"; the keys are in event_text.cc. kConfig when it is none.
base::Result<LinkEvent> parse_event(const std::string& text);
std::string event_text(const LinkEvent& event);
// Why this event cannot happen in this scenario; empty when it can.
std::string find_wrong(const LinkEvent& event, const ScenarioOptions& options);

// Shortest text that is read back as the same number.
std::string text_of(double value);

}  // namespace securefabric::sim
