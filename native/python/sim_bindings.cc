// The simulator in Python: a scenario's options, in the units of its command line, and its report.
// securefabric/simulate.py is the command line.
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <type_traits>
#include <utility>

#include "bindings.h"
#include "sim/scenario.h"

namespace securefabric::python {
namespace {

namespace py = pybind11;
using base::Duration;
using sim::ScenarioOptions;
using sim::ScenarioReport;

using ScenarioClass = py::class_<ScenarioOptions>;

// A field that Python sees as it is. `at` returns a reference into the options.
template <typename At>
void add_field(ScenarioClass& type, const char* name, At at) {
  using Value = std::remove_reference_t<decltype(at(std::declval<ScenarioOptions&>()))>;
  type.def_property(
      name, [at](ScenarioOptions& options) { return at(options); },
      [at](ScenarioOptions& options, Value value) { at(options) = value; });
}

// A duration that Python sees as a number of `unit`.
template <typename At>
void add_duration(ScenarioClass& type, const char* name, Duration unit, At at) {
  const auto nanos = static_cast<double>(unit.nanos());
  type.def_property(
      name,
      [at, nanos](ScenarioOptions& options) {
        return static_cast<double>(at(options).nanos()) / nanos;
      },
      [at, nanos](ScenarioOptions& options, double value) {
        constexpr double kNanosMax = 1e18;  // 31 years; more would not fit
        if (!(value * nanos <= kNanosMax && value >= 0)) throw py::value_error("bad duration");
        at(options) = Duration::nanos(static_cast<int64_t>(value * nanos + 0.5));
      });
}

// An enumeration that Python sees by its name, or as None where the seed decides.
template <typename At, typename Parse, typename Name>
void add_choice(ScenarioClass& type, const char* name, At at, Parse parse, Name name_of) {
  type.def_property(
      name,
      [at, name_of](ScenarioOptions& options) -> std::optional<std::string> {
        if (!at(options)) return std::nullopt;
        return name_of(*at(options));
      },
      [at, parse, name](ScenarioOptions& options, const std::optional<std::string>& text) {
        if (!text) return at(options).reset();
        const auto value = parse(*text);
        if (!value) throw py::value_error("no " + std::string(name) + " is named '" + *text + "'");
        at(options) = *value;
      });
}

void bind_scenario(py::module_& module) {
  ScenarioClass type(module, "Scenario");
  type.def(py::init<>());
  using O = ScenarioOptions;
  add_choice(
      type, "op", [](O& o) -> auto& { return o.kind; }, sim::parse_kind,
      collective::operation_kind_name);
  add_choice(
      type, "dtype", [](O& o) -> auto& { return o.data_type; }, sim::parse_data_type,
      collective::data_type_name);
  add_choice(
      type, "reduce_op", [](O& o) -> auto& { return o.reduce_op; }, sim::parse_reduce_op,
      collective::reduce_op_name);
  add_field(type, "ranks", [](O& o) -> auto& { return o.cluster.ranks; });
  add_field(type, "seed", [](O& o) -> auto& { return o.cluster.seed; });
  add_field(type, "count", [](O& o) -> auto& { return o.count; });
  add_field(type, "operations", [](O& o) -> auto& { return o.operations; });
  add_field(type, "concurrent", [](O& o) -> auto& { return o.concurrent; });
  add_field(type, "sockets", [](O& o) -> auto& { return o.cluster.sockets_per_rank; });
  add_field(type, "paths", [](O& o) -> auto& { return o.cluster.paths_per_peer; });
  add_field(type, "generation_bits", [](O& o) -> auto& { return o.cluster.generation_bits; });
  add_field(type, "datagram_bytes", [](O& o) -> auto& { return o.cluster.datagram_bytes_max; });
  add_field(type, "is_recorded", [](O& o) -> auto& { return o.cluster.is_recorded; });
  add_field(type, "loss", [](O& o) -> auto& { return o.cluster.link.loss; });
  add_field(type, "reorder", [](O& o) -> auto& { return o.cluster.link.reorder; });
  add_field(type, "duplicate", [](O& o) -> auto& { return o.cluster.link.duplicate; });
  add_field(type, "corrupt", [](O& o) -> auto& { return o.cluster.link.corrupt; });
  add_field(type, "rate_bits", [](O& o) -> auto& { return o.cluster.link.rate_bits_per_second; });
  add_field(type, "queue_bytes", [](O& o) -> auto& { return o.cluster.link.queue_bytes_max; });
  add_field(type, "mtu", [](O& o) -> auto& { return o.cluster.link.mtu_bytes; });
  const Duration us = Duration::micros(1);
  add_duration(type, "skew_us", us, [](O& o) -> auto& { return o.skew; });
  add_duration(type, "latency_us", us, [](O& o) -> auto& { return o.cluster.link.latency; });
  add_duration(type, "jitter_us", us, [](O& o) -> auto& { return o.cluster.link.jitter; });
  add_duration(type, "reorder_us", us, [](O& o) -> auto& { return o.cluster.link.reorder_delay; });
  add_duration(type, "loss_burst_us", us, [](O& o) -> auto& { return o.cluster.link.loss_burst; });
  add_duration(type, "time_limit", Duration::seconds(1),
               [](O& o) -> auto& { return o.time_limit; });
  type.def("replay_command", &sim::replay_command);
}

// Name and value of every cause for which an endpoint drops a datagram.
std::map<std::string, uint64_t> drops_of(const ScenarioReport& report) {
  const transport::DropCounters& drops = report.drops;
  return {{"too_short", drops.too_short},
          {"bad_version", drops.bad_version},
          {"unknown_spi", drops.unknown_spi},
          {"path_mismatch", drops.path_mismatch},
          {"stale_generation", drops.stale_generation},
          {"future_generation", drops.future_generation},
          {"replay_duplicate", drops.replay_duplicate},
          {"replay_too_old", drops.replay_too_old},
          {"auth_failed", drops.auth_failed},
          {"packet_limit", drops.packet_limit},
          {"unconfirmed", drops.unconfirmed},
          {"malformed", drops.malformed},
          {"peer_closed", drops.peer_closed}};
}

std::map<std::string, uint64_t> traffic_of(const ScenarioReport& report) {
  const transport::TrafficCounters& traffic = report.traffic;
  return {{"packets_sealed", traffic.packets_sealed},
          {"bytes_sealed", traffic.bytes_sealed},
          {"packets_opened", traffic.packets_opened},
          {"message_bytes_received", traffic.message_bytes_received},
          {"packets_lost", traffic.packets_lost},
          {"spurious_losses", traffic.spurious_losses},
          {"fragments_resent", traffic.fragments_resent},
          {"bytes_resent", traffic.bytes_resent},
          {"probe_timeouts", traffic.probe_timeouts},
          {"paths_suspected", traffic.paths_suspected}};
}

std::map<std::string, uint64_t> links_of(const ScenarioReport& report) {
  const sim::LinkCounters& links = report.links;
  return {{"sent", links.sent},
          {"delivered", links.delivered},
          {"lost", links.lost},
          {"queue_dropped", links.queue_dropped},
          {"mtu_dropped", links.mtu_dropped},
          {"reordered", links.reordered},
          {"duplicated", links.duplicated},
          {"corrupted", links.corrupted}};
}

// Sender, receiver and bytes of every datagram, in the order of sending.
std::vector<std::tuple<uint32_t, uint32_t, py::bytes>> recording_of(const ScenarioReport& report) {
  std::vector<std::tuple<uint32_t, uint32_t, py::bytes>> recording;
  for (const sim::RecordedDatagram& one : report.recording) {
    recording.emplace_back(one.from.value, one.to.value, py::bytes(one.bytes));
  }
  return recording;
}

// By rank: X25519 private key, entry, job secret, SPI base.
std::vector<std::tuple<py::bytes, py::bytes, py::bytes, uint32_t>> key_log_of(
    const ScenarioReport& report) {
  std::vector<std::tuple<py::bytes, py::bytes, py::bytes, uint32_t>> keys;
  for (const sim::SimulatedKeys& one : report.key_log) {
    keys.emplace_back(one.private_key, one.entry, one.job_secret, one.spi_base);
  }
  return keys;
}

ScenarioReport simulate(const ScenarioOptions& options) {
  unwrap(sim::check_options(options));
  const py::gil_scoped_release unlocked;
  return sim::run_scenario(options);
}

}  // namespace

void bind_sim(py::module_& module) {
  bind_scenario(module);
  py::class_<ScenarioReport>(module, "ScenarioReport")
      .def_property_readonly("ok", &ScenarioReport::ok)
      .def_readonly("failures", &ScenarioReport::failures)
      .def_readonly("trace_hash", &ScenarioReport::trace_hash)
      .def_property_readonly("virtual_seconds",
                             [](const ScenarioReport& r) { return r.virtual_time.seconds(); })
      .def_property_readonly("traffic", &traffic_of)
      .def_property_readonly("drops", &drops_of)
      .def_property_readonly("links", &links_of)
      .def_readonly("suite", &ScenarioReport::suite)
      .def_property_readonly("recording", &recording_of)
      .def_property_readonly("key_log", &key_log_of);
  module.def("simulate", &simulate, py::arg("scenario"));
}

}  // namespace securefabric::python
