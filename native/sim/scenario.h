// A whole simulated job from a flat set of options: N ranks run a list of collectives over faulty
// links, every result is compared with the oracle, every checker looks on. It is what
// `python -m securefabric.simulate` runs, so a failure is replayed by its command line.
//
//   ScenarioOptions ─► calls (one list for all ranks) ─► Cluster ─► ScenarioReport
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
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
  uint32_t jobs = 1;        // the ranks in so many equal groups, each with calls of its own
  // A small call like the first one comes before all others. It connects the ranks and is not
  // measured.
  bool has_warm_up = false;
  base::Duration skew = base::Duration::micros(200);  // a rank is late by up to this, per call
  base::Duration time_limit = base::Duration::seconds(120);  // virtual, for everything
  base::Duration heal_at;  // every fault of every link ends; 0: never
  // Virtual time within which everything must be complete after that.
  base::Duration heal_limit = base::Duration::seconds(30);
  base::Duration sample_every;    // of ScenarioReport::samples; 0: none
  std::vector<LinkEvent> events;  // see check_options
  ClusterOptions cluster;         // ranks, seed, links
};

struct LinkReport {
  LinkKey key;
  LinkCounters counters;
};

// A path of rank 0 at some instant.
struct PathSample {
  uint32_t peer = 0;        // rank
  uint8_t from_socket = 0;  // of rank 0
  uint8_t to_socket = 0;    // of the peer
  transport::PathState state = transport::PathState::kValidating;
  double srtt_us = 0;
  uint64_t window_bytes = 0;
};

// Counters are of the whole run so far.
struct Sample {
  base::Duration at;           // since the start
  uint64_t payload_bytes = 0;  // arrived, on all ranks
  uint64_t bytes_resent = 0;   // by all ranks
  uint64_t packets_lost = 0;   // declared lost by all ranks
  std::vector<std::pair<LinkKey, uint64_t>> link_bytes;
  std::vector<PathSample> paths;  // at most kPathsSampled
};

struct ScenarioReport {
  static constexpr size_t kPathsSampled = 64;
  static constexpr size_t kSamplesMax = 100'000;
  static constexpr size_t kLinksMax = 4'096;

  std::vector<std::string> failures;   // one sentence each; empty when all is well
  base::Duration began_at;             // end of the warm-up; what is measured counts from there
  base::Duration virtual_time;         // from there until the last rank completed the last call
  uint64_t payload_bytes = 0;          // that arrived within this time, on all ranks
  transport::TrafficCounters traffic;  // of all ranks and the whole run
  transport::DropCounters drops;       // likewise
  LinkCounters links;                  // of all links
  uint64_t socket_drops = 0;           // datagrams without room in a socket's buffer
  uint64_t connections = 0;            // peers that ranks were connected with, both ends counted
  uint64_t network_bytes_max = 0;      // most that was on links and in socket buffers at a time
  std::vector<LinkReport> by_link;     // nothing when there are more than kLinksMax
  std::vector<base::Duration> completions;  // of each call on each rank, after began_at
  // Payload that had arrived at the ranks of each job when the first job was complete: what each of
  // them got while all competed.
  std::vector<uint64_t> contended_bytes;
  std::vector<Sample> samples;  // see sample_every
  uint64_t trace_hash = 0;      // equal for equal options
  std::string suite;            // that sealed the packets
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
std::optional<collective::DataType> parse_data_type(const std::string& name);
std::optional<collective::ReduceOp> parse_reduce_op(const std::string& name);

}  // namespace securefabric::sim
