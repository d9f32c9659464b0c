// Scenarios as text: names of operations, the command that replays a run, what a failure says.
#include <algorithm>
#include <cstdio>

#include "sim/elements.h"
#include "sim/scenario_knobs.h"

namespace securefabric::sim {

using collective::DataType;
using collective::OperationKind;
using collective::ReduceOp;

std::string text_of(double value) {
  char text[40];
  for (int digits = 6; digits <= 17; ++digits) {
    std::snprintf(text, sizeof(text), "%.*g", digits, value);
    if (std::stod(text) == value) break;
  }
  return text;
}

std::optional<DataType> parse_data_type(const std::string& name) {
  for (const DataType type : oracle_types()) {
    if (name == collective::data_type_name(type)) return type;
  }
  return std::nullopt;
}

std::optional<ReduceOp> parse_reduce_op(const std::string& name) {
  for (auto value = static_cast<uint8_t>(ReduceOp::kSum);
       value <= static_cast<uint8_t>(ReduceOp::kPremulSum); ++value) {
    const auto op = static_cast<ReduceOp>(value);
    if (name == collective::reduce_op_name(op)) return op;
  }
  return std::nullopt;
}

std::string replay_command(const ScenarioOptions& options) {
  const ScenarioOptions usual;
  std::string text = "python -m securefabric.simulate";
  text += std::string(" --op ") +
          (options.kind ? collective::operation_kind_name(*options.kind) : "mixed");
  if (options.data_type) {
    text += std::string(" --dtype ") + collective::data_type_name(*options.data_type);
  }
  if (options.reduce_op) {
    text += std::string(" --reduce-op ") + collective::reduce_op_name(*options.reduce_op);
  }
  for (const ScenarioKnob& knob : scenario_knobs()) {
    const double value = knob.read(options);
    // The command line has a usual number of ranks of its own.
    if (value == knob.read(usual) && knob.name != "ranks") continue;
    std::string flag = knob.flag;
    std::replace(flag.begin(), flag.end(), '_', '-');
    text += " --" + flag + " " + text_of(value);
  }
  for (const LinkEvent& event : options.events) text += " --event '" + event_text(event) + "'";
  return text + " --seed " + std::to_string(options.cluster.seed);
}

std::string describe_failures(const ScenarioOptions& options, const ScenarioReport& report) {
  if (report.ok()) return "";
  std::string text = "seed " + std::to_string(options.cluster.seed) + " fails:\n";
  for (const std::string& failure : report.failures) text += "  " + failure + "\n";
  return text + "replay: " + replay_command(options) + "\n";
}

}  // namespace securefabric::sim
