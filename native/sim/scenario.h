// A whole simulated job from a flat set of options: N ranks run a list of collectives over faulty
// links, every result is compared with the oracle, every checker looks on. It is what
// `python -m securefabric.simulate` runs, so a failure is replayed by its command line.
//
//   ScenarioOptions ─► calls (one list for all ranks) ─► Cluster ─► ScenarioReport
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "sim/call.h"
#include "sim/cluster.h"

namespace securefabric::sim {

struct ScenarioOptions {
  std::optional<collective::OperationKind> kind;  // nothing: all kinds in turn, drawn by seed
  std::optional<collective::DataType> data_type;  // nothing: drawn by seed, per operation
  std::optional<collective::ReduceOp> reduce_op;  // likewise, of those the type has
  uint64_t count = 10'000;  // elements of a call; drawn up to this when the kind is drawn
  uint32_t operations = 1;  // calls, one after the other
  uint32_t concurrent = 1;  // how many a rank has started and not completed, at most
  base::Duration skew = base::Duration::micros(200);  // a rank is late by up to this, per call
  base::Duration time_limit = base::Duration::seconds(120);  // virtual, for everything
  ClusterOptions cluster;                                    // ranks, seed, links
};

struct ScenarioReport {
  std::vector<std::string> failures;   // one sentence each; empty when all is well
  base::Duration virtual_time;         // until the last rank completed the last call
  transport::TrafficCounters traffic;  // of all ranks
  transport::DropCounters drops;       // of all ranks
  LinkCounters links;                  // of all links
  uint64_t trace_hash = 0;             // equal for equal options
  std::string suite;                   // that sealed the packets
  // Where options.cluster.is_recorded: every datagram that was sent, and each rank's keys.
  std::vector<RecordedDatagram> recording;
  std::vector<SimulatedKeys> key_log;

  bool ok() const { return failures.empty(); }
};

// kConfig when the options cannot be simulated.
base::Status check_options(const ScenarioOptions& options);
// `options` passed check_options.
ScenarioReport run_scenario(const ScenarioOptions& options);

// The command that runs the same scenario, for a failure's message.
std::string replay_command(const ScenarioOptions& options);
// The failures with seed, scenario and replay command; empty when there are none.
std::string describe_failures(const ScenarioOptions& options, const ScenarioReport& report);

// What the command line calls these; nothing when there is no such name.
std::optional<collective::OperationKind> parse_kind(const std::string& name);
std::optional<collective::DataType> parse_data_type(const std::string& name);
std::optional<collective::ReduceOp> parse_reduce_op(const std::string& name);

}  // namespace securefabric::sim
