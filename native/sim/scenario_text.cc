// Scenarios as text: names of operations, the command that replays a run, what a failure says.
#include <cstdio>

#include "sim/elements.h"
#include "sim/scenario.h"

namespace securefabric::sim {

using collective::DataType;
using collective::OperationKind;
using collective::ReduceOp;

namespace {

// Shortest text that is read back as the same number.
std::string text_of(double value) {
  char text[40];
  for (int digits = 6; digits <= 17; ++digits) {
    std::snprintf(text, sizeof(text), "%.*g", digits, value);
    if (std::stod(text) == value) break;
  }
  return text;
}

std::string micros(base::Duration duration) {
  return text_of(static_cast<double>(duration.nanos()) / 1e3);
}

}  // namespace

std::optional<OperationKind> parse_kind(const std::string& name) {
  for (auto value = static_cast<uint8_t>(OperationKind::kAllReduce);
       value <= static_cast<uint8_t>(OperationKind::kBarrier); ++value) {
    const auto kind = static_cast<OperationKind>(value);
    if (name == collective::operation_kind_name(kind)) return kind;
  }
  return std::nullopt;
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
  const ClusterOptions& cluster = options.cluster;
  const LinkOptions& link = cluster.link;
  const ScenarioOptions usual;
  std::string text = "python -m securefabric.simulate";
  const auto add = [&text](const char* name, const std::string& value, const std::string& normal) {
    if (value != normal) text += std::string(" --") + name + " " + value;
  };
  const auto count = [](auto value) { return std::to_string(value); };
  add("ranks", count(cluster.ranks), "");
  add("op", options.kind ? collective::operation_kind_name(*options.kind) : "mixed", "");
  add("dtype", options.data_type ? collective::data_type_name(*options.data_type) : "any", "any");
  add("reduce-op", options.reduce_op ? collective::reduce_op_name(*options.reduce_op) : "any",
      "any");
  add("count", count(options.count), "");
  add("operations", count(options.operations), count(usual.operations));
  add("concurrent", count(options.concurrent), count(usual.concurrent));
  add("skew-us", micros(options.skew), micros(usual.skew));
  add("time-limit", text_of(options.time_limit.seconds()), text_of(usual.time_limit.seconds()));
  add("loss", text_of(link.loss), "0");
  add("loss-burst-us", micros(link.loss_burst), "0");
  add("reorder", text_of(link.reorder), "0");
  add("reorder-us", micros(link.reorder_delay), micros(usual.cluster.link.reorder_delay));
  add("duplicate", text_of(link.duplicate), "0");
  add("corrupt", text_of(link.corrupt), "0");
  add("latency-us", micros(link.latency), micros(usual.cluster.link.latency));
  add("jitter-us", micros(link.jitter), micros(usual.cluster.link.jitter));
  add("rate-mbit", text_of(static_cast<double>(link.rate_bits_per_second) / 1e6), "0");
  add("queue-bytes", count(link.queue_bytes_max), count(usual.cluster.link.queue_bytes_max));
  add("mtu", count(link.mtu_bytes), count(usual.cluster.link.mtu_bytes));
  add("datagram-bytes", count(cluster.datagram_bytes_max), count(usual.cluster.datagram_bytes_max));
  add("sockets", count(cluster.sockets_per_rank), count(usual.cluster.sockets_per_rank));
  add("paths", count(cluster.paths_per_peer), count(usual.cluster.paths_per_peer));
  add("generation-bits", count(cluster.generation_bits), count(usual.cluster.generation_bits));
  add("seed", count(cluster.seed), "");
  return text;
}

std::string describe_failures(const ScenarioOptions& options, const ScenarioReport& report) {
  if (report.ok()) return "";
  std::string text = "seed " + std::to_string(options.cluster.seed) + " fails:\n";
  for (const std::string& failure : report.failures) text += "  " + failure + "\n";
  return text + "replay: " + replay_command(options) + "\n";
}

}  // namespace securefabric::sim
