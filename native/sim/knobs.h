// The numbers that describe a link, by name: what scenario files, events and command lines set.
//
// Names end in their unit. Every knob is a double here, whatever the field is: a rate that ramps
// and a latency that jumps are changed by the same code.
#pragma once

#include <span>
#include <string_view>

#include "sim/link.h"

namespace securefabric::sim {

struct LinkKnob {
  const char* name;  // "rate_mbit"
  const char* help;  // what it does, for the command line
  double max;        // least and largest value: 0 or `min`, and this
  bool is_whole;     // fractions are refused
  double (*read)(const LinkOptions&);
  void (*write)(LinkOptions&, double);
  double min = 0;
};

std::span<const LinkKnob> link_knobs();
// Null when no knob has this name.
const LinkKnob* find_link_knob(std::string_view name);

}  // namespace securefabric::sim
