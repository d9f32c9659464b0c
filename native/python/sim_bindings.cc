// The simulator in Python: a scenario's settings by name, in the units of its command line, and its
// report. securefabric/simulate is the command line.
#include <pybind11/stl.h>

#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "bindings.h"
#include "sim/scenario_knobs.h"
#include "sim/soak.h"

namespace securefabric::python {
namespace {

namespace py = pybind11;
using base::Duration;
using sim::ScenarioOptions;
using sim::ScenarioReport;

using ScenarioClass = py::class_<ScenarioOptions>;

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

double knob_value(const ScenarioOptions& options, const std::string& flag) {
  for (const sim::ScenarioKnob& knob : sim::scenario_knobs()) {
    if (knob.flag == flag) return knob.read(options);
  }
  throw py::key_error(flag);
}

void bind_scenario(py::module_& module) {
  ScenarioClass type(module, "Scenario");
  type.def(py::init<>());
  using O = ScenarioOptions;
  add_choice(
      type, "op", [](O& o) -> auto& { return o.kind; }, collective::parse_operation_kind,
      collective::operation_kind_name);
  add_choice(
      type, "dtype", [](O& o) -> auto& { return o.data_type; }, sim::parse_data_type,
      collective::data_type_name);
  add_choice(
      type, "reduce_op", [](O& o) -> auto& { return o.reduce_op; }, sim::parse_reduce_op,
      collective::reduce_op_name);
  type.def_property(
      "seed", [](const O& o) { return o.cluster.seed; },
      [](O& o, uint64_t seed) { o.cluster.seed = seed; });
  type.def_property(
      "is_recorded", [](const O& o) { return o.cluster.is_recorded; },
      [](O& o, bool is_recorded) { o.cluster.is_recorded = is_recorded; });
  type.def("__getitem__", &knob_value);
  type.def("__setitem__", [](O& o, const std::string& flag, double value) {
    unwrap(sim::set_knob(o, flag, value));
  });
  type.def("add_event", [](O& o, const std::string& text) {
    o.events.push_back(unwrap(sim::parse_event(text)));
  });
  type.def_property_readonly("events", [](const O& o) {
    std::vector<std::string> texts;
    for (const sim::LinkEvent& event : o.events) texts.push_back(sim::event_text(event));
    return texts;
  });
  type.def("replay_command", &sim::replay_command);
  module.def("draw_scenario", &sim::draw_scenario, py::arg("seed"));
  module.def("scenario_knobs", [] {
    std::vector<std::tuple<std::string, std::string, std::string, std::string, double, bool>> rows;
    const ScenarioOptions usual;
    for (const sim::ScenarioKnob& knob : sim::scenario_knobs()) {
      rows.emplace_back(knob.section, knob.name, knob.flag, knob.help, knob.read(usual),
                        knob.is_whole);
    }
    return rows;
  });
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
          {"duplicate_fragments", traffic.duplicate_fragments},
          {"ce_received", traffic.ce_received},
          {"fragments_resent", traffic.fragments_resent},
          {"bytes_resent", traffic.bytes_resent},
          {"probe_timeouts", traffic.probe_timeouts},
          {"paths_suspected", traffic.paths_suspected},
          {"epochs_begun", traffic.epochs_begun}};
}

std::map<std::string, uint64_t> link_counts(const sim::LinkCounters& links) {
  return {{"sent", links.sent},
          {"delivered", links.delivered},
          {"lost", links.lost},
          {"blackholed", links.blackholed},
          {"queue_dropped", links.queue_dropped},
          {"mtu_dropped", links.mtu_dropped},
          {"reordered", links.reordered},
          {"duplicated", links.duplicated},
          {"corrupted", links.corrupted},
          {"truncated", links.truncated},
          {"marked", links.marked},
          {"bytes", links.bytes}};
}

// "0>1/2": link 2 from rank 0 to rank 1; "out 3", "in 3": ports of rank 3.
std::string name_of(const sim::LinkKey& key) {
  const std::string from = std::to_string(key.from.value);
  if (key.hop == sim::Hop::kSenderPort) return "out " + from;
  if (key.hop == sim::Hop::kReceiverPort) return "in " + from;
  return from + ">" + std::to_string(key.to.value) + "/" + std::to_string(key.index);
}

py::dict links_by_name(const ScenarioReport& report) {
  py::dict links;
  for (const sim::LinkReport& link : report.by_link) {
    links[py::str(name_of(link.key))] = link_counts(link.counters);
  }
  return links;
}

py::dict sample_of(const sim::Sample& sample) {
  py::dict links;
  for (const auto& [key, bytes] : sample.link_bytes) links[py::str(name_of(key))] = bytes;
  py::dict paths;
  for (const sim::PathSample& path : sample.paths) {
    const std::string name = std::to_string(path.peer) + "/" + std::to_string(path.from_socket) +
                             "-" + std::to_string(path.to_socket);
    py::dict at;
    at["state"] = transport::path_state_name(path.state);
    at["srtt_us"] = path.srtt_us;
    at["window_bytes"] = path.window_bytes;
    paths[py::str(name)] = at;
  }
  py::dict result;
  result["at_ms"] = sample.at.seconds() * 1e3;
  result["payload_bytes"] = sample.payload_bytes;
  result["bytes_resent"] = sample.bytes_resent;
  result["packets_lost"] = sample.packets_lost;
  result["links"] = links;
  result["paths"] = paths;
  return result;
}

py::list samples_of(const ScenarioReport& report) {
  py::list samples;
  for (const sim::Sample& sample : report.samples) samples.append(sample_of(sample));
  return samples;
}

std::vector<double> completions_of(const ScenarioReport& report) {
  std::vector<double> seconds;
  for (const Duration duration : report.completions) seconds.push_back(duration.seconds());
  return seconds;
}

// Sender, receiver and bytes of every datagram, in the order of sending.
std::vector<std::tuple<uint32_t, uint32_t, py::bytes>> recording_of(const ScenarioReport& report) {
  std::vector<std::tuple<uint32_t, uint32_t, py::bytes>> recording;
  for (const sim::RecordedDatagram& one : report.recording) {
    recording.emplace_back(one.from.value, one.to.value, py::bytes(one.bytes));
  }
  return recording;
}

// By rank: X25519 private key, entry, job secret, SPI base, private keys of later epochs.
using KeyLogRow = std::tuple<py::bytes, py::bytes, py::bytes, uint32_t, std::vector<py::bytes>>;
std::vector<KeyLogRow> key_log_of(const ScenarioReport& report) {
  std::vector<KeyLogRow> keys;
  for (const sim::SimulatedKeys& one : report.key_log) {
    std::vector<py::bytes> later(one.epoch_private_keys.begin(), one.epoch_private_keys.end());
    keys.emplace_back(one.private_key, one.entry, one.job_secret, one.spi_base, std::move(later));
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
      .def_property_readonly("began_seconds",
                             [](const ScenarioReport& r) { return r.began_at.seconds(); })
      .def_property_readonly("virtual_seconds",
                             [](const ScenarioReport& r) { return r.virtual_time.seconds(); })
      .def_readonly("payload_bytes", &ScenarioReport::payload_bytes)
      .def_readonly("socket_drops", &ScenarioReport::socket_drops)
      .def_readonly("connections", &ScenarioReport::connections)
      .def_readonly("network_bytes_max", &ScenarioReport::network_bytes_max)
      .def_readonly("contended_bytes", &ScenarioReport::contended_bytes)
      .def_property_readonly("completions_seconds", &completions_of)
      .def_property_readonly("traffic", &traffic_of)
      .def_property_readonly("drops", &drops_of)
      .def_property_readonly("links", [](const ScenarioReport& r) { return link_counts(r.links); })
      .def_property_readonly("by_link", &links_by_name)
      .def_property_readonly("samples", &samples_of)
      .def_readonly("suite", &ScenarioReport::suite)
      .def_property_readonly("recording", &recording_of)
      .def_property_readonly("key_log", &key_log_of);
  module.def("simulate", &simulate, py::arg("scenario"));
}

}  // namespace securefabric::python
