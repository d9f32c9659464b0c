#include "sim/scenario_knobs.h"

#include <cmath>
#include <type_traits>

namespace securefabric::sim {

using base::Duration;

namespace {

constexpr double kNanosPerMicro = 1e3;
constexpr double kNanosPerMilli = 1e6;
constexpr double kNanosPerSecond = 1e9;
constexpr double kCountMax = 1 << 28;
constexpr double kBytesMax = 1e12;
constexpr double kSecondsMax = 1e6;

// A number that is kept as it is. `at` returns a reference into the options, const or not.
template <typename At>
ScenarioKnob number(std::string section, const std::string& name, std::string help, double min,
                    double max, At at) {
  using Value = std::remove_reference_t<decltype(at(std::declval<ScenarioOptions&>()))>;
  return {std::move(section),
          name,
          name,
          std::move(help),
          min,
          max,
          !std::is_floating_point_v<Value>,
          [at](const ScenarioOptions& o) { return static_cast<double>(at(o)); },
          [at](ScenarioOptions& o, double value) { at(o) = static_cast<Value>(value); }};
}

// A duration in a unit of so many nanoseconds.
template <typename At>
ScenarioKnob duration(std::string section, const std::string& name, std::string help,
                      double unit_nanos, At at) {
  return {std::move(section),
          name,
          name,
          std::move(help),
          0,
          kSecondsMax * kNanosPerSecond / unit_nanos,
          unit_nanos == 1,
          [at, unit_nanos](const ScenarioOptions& o) {
            return static_cast<double>(at(o).nanos()) / unit_nanos;
          },
          [at, unit_nanos](ScenarioOptions& o, double value) {
            at(o) = Duration::nanos(static_cast<int64_t>(std::llround(value * unit_nanos)));
          }};
}

void add_job(std::vector<ScenarioKnob>& knobs) {
  const char* job = "job";
  constexpr double kRanksMax = 4'096;
  constexpr double kCallsMax = 1e6;
  knobs.push_back(number(job, "ranks", "ranks of all jobs", 1, kRanksMax,
                         [](auto& o) -> auto& { return o.cluster.ranks; }));
  knobs.push_back(number(job, "count", "elements of each tensor or chunk; at most, when mixed", 0,
                         kCountMax, [](auto& o) -> auto& { return o.count; }));
  knobs.push_back(number(job, "operations", "collectives, one after the other", 1, kCallsMax,
                         [](auto& o) -> auto& { return o.operations; }));
  knobs.push_back(number(job, "concurrent", "of them in progress at a time", 1, kCallsMax,
                         [](auto& o) -> auto& { return o.concurrent; }));
  knobs.push_back(number(job, "jobs", "equal groups of ranks, each with calls of its own", 1,
                         kRanksMax, [](auto& o) -> auto& { return o.jobs; }));
  knobs.push_back(number(job, "warm_up", "1: a small call comes first and is not measured", 0, 1,
                         [](auto& o) -> auto& { return o.has_warm_up; }));
  knobs.push_back(duration(job, "skew_us", "each rank calls up to so much late", kNanosPerMicro,
                           [](auto& o) -> auto& { return o.skew; }));
  knobs.push_back(duration(job, "time_limit_s", "virtual time for all of it", kNanosPerSecond,
                           [](auto& o) -> auto& { return o.time_limit; }));
  knobs.push_back(duration(job, "heal_at_ms", "every fault ends; 0: never", kNanosPerMilli,
                           [](auto& o) -> auto& { return o.heal_at; }));
  knobs.push_back(duration(job, "heal_limit_s", "after that, all must be done within so long",
                           kNanosPerSecond, [](auto& o) -> auto& { return o.heal_limit; }));
  knobs.push_back(duration(job, "sample_ms", "interval of the time series; 0: none", kNanosPerMilli,
                           [](auto& o) -> auto& { return o.sample_every; }));
}

void add_rank(std::vector<ScenarioKnob>& knobs) {
  const char* rank = "rank";
  constexpr double kSocketsMax = transport::kSocketsMax;
  constexpr double kNanosMax = 1e9;
  constexpr double kEpochBytesMin = 1'000;
  constexpr double kEpochBytesMax = 1e15;
  constexpr double kGenerationBitsMin = 5;  // fewer packets than are in flight: keys run away
  knobs.push_back(number(rank, "sockets", "sockets of each rank", 1, kSocketsMax,
                         [](auto& o) -> auto& { return o.cluster.sockets_per_rank; }));
  knobs.push_back(number(rank, "paths", "paths to each peer, at most sockets squared", 1,
                         transport::kPathsPerPeerMax,
                         [](auto& o) -> auto& { return o.cluster.paths_per_peer; }));
  knobs.push_back(number(rank, "datagram_bytes", "largest datagram it sends",
                         transport::kDatagramBytesMin, transport::kDatagramBytesMax,
                         [](auto& o) -> auto& { return o.cluster.datagram_bytes_max; }));
  knobs.push_back(number(rank, "burst_segments", "datagrams of one send (GSO), at most", 1,
                         transport::kBurstSegmentsMax,
                         [](auto& o) -> auto& { return o.cluster.burst_segments_max; }));
  knobs.push_back(number(rank, "generation_bits", "log2 of the packets under one key",
                         kGenerationBitsMin, ClusterOptions{}.generation_bits,
                         [](auto& o) -> auto& { return o.cluster.generation_bits; }));
  knobs.push_back(number(rank, "epoch_bytes", "after which a link changes its keys", kEpochBytesMin,
                         kEpochBytesMax,
                         [](auto& o) -> auto& { return o.cluster.epoch_limits.bytes; }));
  knobs.push_back(duration(rank, "epoch_age_s", "after which it does, too", kNanosPerSecond,
                           [](auto& o) -> auto& { return o.cluster.epoch_limits.age; }));
  knobs.push_back(duration(rank, "death_timeout_s", "silence after which a peer is lost",
                           kNanosPerSecond,
                           [](auto& o) -> auto& { return o.cluster.death_timeout; }));
  knobs.push_back(number(rank, "socket_buffer_bytes", "wait in one socket; 0: no limit", 0,
                         kBytesMax,
                         [](auto& o) -> auto& { return o.cluster.host.socket_buffer_bytes; }));
  knobs.push_back(duration(rank, "call_cost_ns", "CPU time of a send or receive call", 1,
                           [](auto& o) -> auto& { return o.cluster.host.call_cost; }));
  knobs.push_back(duration(rank, "datagram_cost_ns", "CPU time of a datagram", 1,
                           [](auto& o) -> auto& { return o.cluster.host.datagram_cost; }));
  knobs.push_back(number(rank, "byte_cost_ns", "CPU time of a byte", 0, kNanosMax,
                         [](auto& o) -> auto& { return o.cluster.host.byte_cost_ns; }));
}

void add_network(std::vector<ScenarioKnob>& knobs) {
  constexpr double kLinksMax = 4'096;
  knobs.push_back(number("network", "parallel_links",
                         "between two ranks, by hash (ECMP); 0: one for each pair of sockets", 0,
                         kLinksMax,
                         [](auto& o) -> auto& { return o.cluster.network.parallel_links; }));
  knobs.push_back(number("network", "shared", "1: they are the same for all ranks", 0, 1,
                         [](auto& o) -> auto& { return o.cluster.network.is_shared; }));
}

template <typename At>
void add_links(std::vector<ScenarioKnob>& knobs, const char* section, const std::string& prefix,
               At at) {
  for (const LinkKnob& knob : link_knobs()) {
    knobs.push_back({section, knob.name, prefix + knob.name, knob.help, knob.min, knob.max,
                     knob.is_whole,
                     [at, &knob](const ScenarioOptions& o) { return knob.read(at(o)); },
                     [at, &knob](ScenarioOptions& o, double value) { knob.write(at(o), value); }});
  }
}

std::vector<ScenarioKnob> make_knobs() {
  std::vector<ScenarioKnob> knobs;
  add_job(knobs);
  add_rank(knobs);
  add_network(knobs);
  add_links(knobs, "link", "", [](auto& o) -> auto& { return o.cluster.link; });
  add_links(knobs, "sender_port", "out_",
            [](auto& o) -> auto& { return o.cluster.network.sender_port; });
  add_links(knobs, "receiver_port", "in_",
            [](auto& o) -> auto& { return o.cluster.network.receiver_port; });
  return knobs;
}

}  // namespace

const std::vector<ScenarioKnob>& scenario_knobs() {
  static const std::vector<ScenarioKnob> knobs = make_knobs();
  return knobs;
}

std::string describe_bounds(const ScenarioKnob& knob) {
  return knob.flag + " must be " + (knob.is_whole ? "a whole number, " : "") + text_of(knob.min) +
         " to " + text_of(knob.max);
}

base::Status set_knob(ScenarioOptions& options, std::string_view flag, double value) {
  for (const ScenarioKnob& knob : scenario_knobs()) {
    if (knob.flag != flag) continue;
    const bool is_right =
        value >= knob.min && value <= knob.max && (!knob.is_whole || value == std::floor(value));
    if (!is_right) {
      return base::Error{base::ErrorCode::kConfig,
                         describe_bounds(knob) + ", not " + text_of(value)};
    }
    knob.write(options, value);
    return base::ok_status();
  }
  return base::Error{base::ErrorCode::kConfig, "no setting is named '" + std::string(flag) + "'"};
}

}  // namespace securefabric::sim
