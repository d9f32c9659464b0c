// securefabric._C: the fabric and the backend as Python sees them. securefabric/_C.pyi has the
// types.
#include <torch/csrc/utils/pybind.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <pybind11/chrono.h>
#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <vector>

#include "crypto/job_key.h"
#include "net/fabric.h"
#include "net/interfaces.h"
#include "torch/backend.h"
#include "torch/errors.h"
#include "torch/signals.h"
#include "torch/store.h"
#include "torch/store_prefix.h"
#include "torch/unlocked_gil.h"

namespace py = pybind11;

namespace securefabric::torch_room {
namespace {

using base::Bytes;
using base::Duration;
using base::Error;
using base::ErrorCode;

template <typename T>
using IntrusiveClass = c10::intrusive_ptr<T>;

py::bytes to_bytes(Bytes bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::vector<uint8_t> from_bytes(const py::handle& object) {
  const auto text = object.cast<std::string>();
  return base::to_vector(base::as_bytes(text));
}

// The bytes of a secret that Python hands over; whoever takes them wipes them.
base::MutableBytes mutable_view(const py::bytearray& object) {
  return {reinterpret_cast<uint8_t*>(PyByteArray_AsString(object.ptr())), object.size()};
}

Duration from_seconds(double seconds) {
  return Duration::nanos(static_cast<int64_t>(seconds * 1e9));
}

// What securefabric.roster.PeerEntry holds, for each engine. GIL held.
net::Fabric::Peer peer_from(const py::object& entry) {
  transport::PeerDescription peer;
  peer.rank = base::Rank{entry.attr("rank").cast<uint32_t>()};
  const auto boot_id = from_bytes(entry.attr("boot_id"));
  if (boot_id.size() != peer.boot_id.size()) throw py::value_error("boot_id must have 16 bytes");
  std::copy(boot_id.begin(), boot_id.end(), peer.boot_id.begin());
  peer.datagram_bytes_max = entry.attr("max_datagram").cast<size_t>();
  peer.entry = from_bytes(entry.attr("entry_bytes"));
  const auto kem_secret = entry.attr("kem_secret").cast<py::bytearray>();
  if (const auto bytes = mutable_view(kem_secret); !bytes.empty()) {
    peer.kem_secret =
        std::make_shared<const crypto::SecretBuffer>(crypto::SecretBuffer::copy_and_wipe(bytes));
  }
  net::Fabric::Peer engines;
  for (const py::handle& engine : entry.attr("engines")) {
    peer.public_key = from_bytes(engine.attr("public_key"));
    peer.spi_base = base::Spi{engine.attr("spi_base").cast<uint32_t>()};
    peer.addresses.clear();
    for (const auto& text : engine.attr("addresses").cast<std::vector<std::string>>()) {
      peer.addresses.push_back(value_or_throw(base::SocketAddress::parse(text)));
    }
    engines.push_back(peer);
  }
  return engines;
}

// The message of a Python exception behind the name of its class, as errors.py knows it.
Error error_from(const py::error_already_set& raised) {
  const auto kind = raised.type().attr("__name__").cast<std::string>();
  const auto text = py::str(raised.value()).cast<std::string>();
  return Error{ErrorCode::kAuth, kind + ": " + text};
}

// What native threads may drop: it is released with the GIL held, or never.
std::shared_ptr<py::object> shared_with_threads(py::object object) {
  return {new py::object(std::move(object)), [](py::object* held) {
            if (Py_IsInitialized() == 0) return;
            const py::gil_scoped_acquire gil;
            delete held;
          }};
}

// A Python callable that native threads call.
class Resolver {
 public:
  explicit Resolver(py::object callable) : callable_(shared_with_threads(std::move(callable))) {}

  base::Result<std::optional<net::Fabric::Peer>> operator()(const std::string& board,
                                                            base::Rank rank, bool is_needed) const {
    const py::gil_scoped_acquire gil;
    try {
      const py::object entry = (*callable_)(board, rank.value, is_needed);
      if (entry.is_none()) return std::optional<net::Fabric::Peer>();
      return std::optional(peer_from(entry));
    } catch (const py::error_already_set& raised) {
      return error_from(raised);
    } catch (const std::exception& raised) {
      return Error{ErrorCode::kSystem, raised.what()};
    }
  }

 private:
  std::shared_ptr<py::object> callable_;
};

// The same fabric, whose end does not keep the GIL from the threads that it waits for. The last
// reference may be a work's, a group's or Python's, and go away on any thread.
std::shared_ptr<net::Fabric> ended_without_gil(std::shared_ptr<net::Fabric> fabric) {
  net::Fabric* const raw = fabric.get();
  return {raw, [held = std::move(fabric)](net::Fabric*) mutable {
            const UnlockedGil unlocked;
            held.reset();
          }};
}

// Python's handle of the fabric; groups and works share what it points to.
struct FabricHandle {
  std::shared_ptr<net::Fabric> fabric;
  bool eager_connect = false;
};

// Operation, ranks, small_bytes, segments_per_chunk.
using TuningTuple = std::tuple<std::string, uint32_t, uint64_t, uint32_t>;

collective::TuningTable tuning_table(const std::vector<TuningTuple>& tuples) {
  std::vector<collective::TuningRow> rows;
  for (const auto& [name, ranks, small_bytes, segments] : tuples) {
    const auto kind = collective::parse_operation_kind(name);
    if (!kind) throw py::value_error("tuning: no operation " + name);
    rows.push_back({*kind, ranks, small_bytes, segments});
  }
  return value_or_throw(collective::TuningTable::make(std::move(rows)));
}

std::unique_ptr<FabricHandle> make_fabric(
    uint32_t rank, uint32_t world_size, uint32_t local_world_size, const std::string& suite_name,
    const py::bytearray& key_text, size_t engines, std::vector<std::string> addresses,
    std::string interfaces, size_t sockets_per_interface, uint16_t port_first, uint16_t port_last,
    size_t paths_per_peer, double join_timeout_s, double death_timeout_s, double heartbeat_s,
    double epoch_age_s, uint64_t epoch_bytes, bool gso, bool gro, std::string spin,
    bool eager_connect, unsigned generation_bits, const std::vector<TuningTuple>& tuning,
    py::object resolve) {
  net::FabricConfig config;
  config.rank = base::Rank{rank};
  config.world_size = world_size;
  config.local_world_size = local_world_size;
  config.engines = engines;
  config.addresses = std::move(addresses);
  config.interfaces = std::move(interfaces);
  config.sockets_per_interface = sockets_per_interface;
  config.port_first = port_first;
  config.port_last = port_last;
  config.paths_per_peer = paths_per_peer;
  config.join_timeout = from_seconds(join_timeout_s);
  config.death_timeout = from_seconds(death_timeout_s);
  config.heartbeat = from_seconds(heartbeat_s);
  config.epoch_age = from_seconds(epoch_age_s);
  config.epoch_bytes = epoch_bytes;
  config.use_gso = gso;
  config.use_gro = gro;
  config.spin = std::move(spin);
  config.generation_bits = generation_bits;
  config.tuning = tuning_table(tuning);
  crypto::Suite suite = value_or_throw(crypto::parse_suite(suite_name));
  crypto::SecretBuffer job_secret;
  if (const auto text = mutable_view(key_text); !text.empty()) {
    // parse() wipes the caller's bytearray, which is the only copy that Python has.
    const auto key = value_or_throw(crypto::JobKey::parse(text));
    if (key.suite() != suite) throw py::value_error("the suite is not that of the job key");
    job_secret = key.copy_job_secret();
  }
  auto handle = std::make_unique<FabricHandle>();
  handle->eager_connect = eager_connect;
  const Resolver resolver(std::move(resolve));
  const py::gil_scoped_release unlocked;
  handle->fabric = ended_without_gil(
      value_or_throw(net::Fabric::make(config, suite, std::move(job_secret), resolver)));
  return handle;
}

py::dict drops_dict(const transport::DropCounters& drops) {
  py::dict out;
  out["too_short"] = drops.too_short;
  out["bad_version"] = drops.bad_version;
  out["unknown_spi"] = drops.unknown_spi;
  out["path_mismatch"] = drops.path_mismatch;
  out["stale_generation"] = drops.stale_generation;
  out["future_generation"] = drops.future_generation;
  out["replay_duplicate"] = drops.replay_duplicate;
  out["replay_too_old"] = drops.replay_too_old;
  out["auth_failed"] = drops.auth_failed;
  out["packet_limit"] = drops.packet_limit;
  out["unconfirmed"] = drops.unconfirmed;
  out["malformed"] = drops.malformed;
  out["peer_closed"] = drops.peer_closed;
  return out;
}

py::dict stats_dict(const net::FabricStats& stats) {
  py::dict out;
  out["engines"] = stats.engines;
  out["peers"] = stats.peers;
  out["paths_active"] = stats.paths_active;
  out["paths_used"] = stats.paths_used;
  out["gso"] = stats.has_gso;
  out["gro"] = stats.has_gro;
  out["kernel_drops"] = stats.kernel_drops;
  const transport::TrafficCounters& traffic = stats.traffic;
  out["packets_sealed"] = traffic.packets_sealed;
  out["bytes_sealed"] = traffic.bytes_sealed;
  out["packets_opened"] = traffic.packets_opened;
  out["bytes_opened"] = traffic.bytes_opened;
  out["message_bytes_sent"] = traffic.message_bytes_sent;
  out["message_bytes_received"] = traffic.message_bytes_received;
  out["packets_lost"] = traffic.packets_lost;
  out["fragments_resent"] = traffic.fragments_resent;
  out["bytes_resent"] = traffic.bytes_resent;
  out["spurious_losses"] = traffic.spurious_losses;
  out["duplicate_fragments"] = traffic.duplicate_fragments;
  out["tail_probes"] = traffic.tail_probes;
  out["probe_timeouts"] = traffic.probe_timeouts;
  out["paths_suspected"] = traffic.paths_suspected;
  out["epochs_begun"] = traffic.epochs_begun;
  out["acks_sent"] = traffic.acks_sent;
  out["ce_received"] = traffic.ce_received;
  out["unexpected_messages"] = traffic.unexpected_messages;
  out["drops"] = drops_dict(stats.drops);
  return out;
}

py::list path_list(const std::vector<net::FabricPath>& paths) {
  py::list out;
  for (const auto& [engine, peer, path] : paths) {
    py::dict one;
    one["engine"] = engine;
    one["peer"] = peer.value;
    one["socket"] = path.id.sender_socket();
    one["peer_socket"] = path.id.receiver_socket();
    one["address"] = path.to.to_text();
    one["state"] = transport::path_state_name(path.state);
    one["in_use"] = path.is_in_use;
    one["srtt_us"] = path.srtt_us;
    one["delay_us"] = path.delay_us;
    one["window_bytes"] = path.window_bytes;
    one["in_flight_bytes"] = path.in_flight_bytes;
    one["mtu_bytes"] = path.mtu_bytes;
    one["packets_sealed"] = path.packets_sealed;
    one["packets_lost"] = path.packets_lost;
    one["message_bytes"] = path.message_bytes;
    one["epoch"] = path.epoch;
    out.append(std::move(one));
  }
  return out;
}

// Public key, SPI base and addresses of each.
py::list engine_list(const net::Fabric& fabric) {
  py::list out;
  for (const net::EngineEntry& engine : fabric.engine_entries()) {
    std::vector<std::string> addresses;
    for (const auto& address : engine.addresses) addresses.push_back(address.to_text());
    out.append(py::make_tuple(to_bytes(engine.public_key), engine.spi_base.value, addresses));
  }
  return out;
}

std::vector<std::tuple<std::string, std::string, uint32_t>> selected_interfaces(
    const std::string& grammar) {
  const auto all = value_or_throw(net::list_interfaces());
  std::vector<std::tuple<std::string, std::string, uint32_t>> selected;
  for (const auto& interface : value_or_throw(net::select_interfaces(all, grammar))) {
    selected.emplace_back(interface.name, interface.address.ip_text(), interface.mtu);
  }
  return selected;
}

void bind_fabric(py::module_& module) {
  py::class_<FabricHandle>(module, "Fabric")
      .def(py::init(&make_fabric), py::kw_only(), py::arg("rank"), py::arg("world_size"),
           py::arg("local_world_size"), py::arg("suite"), py::arg("job_key_text"),
           py::arg("engines"), py::arg("addresses"), py::arg("interfaces"),
           py::arg("sockets_per_interface"), py::arg("port_first"), py::arg("port_last"),
           py::arg("paths_per_peer"), py::arg("join_timeout_s"), py::arg("death_timeout_s"),
           py::arg("heartbeat_s"), py::arg("epoch_age_s"), py::arg("epoch_bytes"), py::arg("gso"),
           py::arg("gro"), py::arg("spin"), py::arg("eager_connect"), py::arg("generation_bits"),
           py::arg("tuning"), py::arg("resolve"))
      .def("set_tuning",
           [](FabricHandle& h, const std::vector<TuningTuple>& tuning) {
             h.fabric->set_tuning(tuning_table(tuning));
           })
      .def_property_readonly("boot_id",
                             [](const FabricHandle& h) { return to_bytes(h.fabric->boot_id()); })
      .def_property_readonly("engines",
                             [](const FabricHandle& h) { return engine_list(*h.fabric); })
      .def_property_readonly("max_datagram",
                             [](const FabricHandle& h) { return h.fabric->datagram_bytes_max(); })
      .def_property_readonly(
          "suite", [](const FabricHandle& h) { return crypto::suite_name(h.fabric->suite()); })
      .def("set_entry",
           [](FabricHandle& h, const py::bytes& entry) {
             const auto bytes = from_bytes(entry);
             const py::gil_scoped_release unlocked;
             const base::Status status = h.fabric->set_entry(bytes);
             if (!status) throw_error(status.error());
           })
      .def("stats",
           [](FabricHandle& h) {
             net::FabricStats stats;
             {
               const py::gil_scoped_release unlocked;
               stats = h.fabric->stats();
             }
             return stats_dict(stats);
           })
      .def("paths",
           [](FabricHandle& h) {
             std::vector<net::FabricPath> paths;
             {
               const py::gil_scoped_release unlocked;
               paths = h.fabric->paths();
             }
             return path_list(paths);
           })
      .def(
          "shutdown", [](FabricHandle& h) { h.fabric->shutdown(); },
          py::call_guard<py::gil_scoped_release>());
}

// What stands for torch's ProcessGroupGloo after replace_gloo().
py::object gloo_stand_in() {
  return py::module_::import("securefabric._gloo").attr("ProcessGroupGloo");
}

void bind_backend(py::module_& module) {
  using Options = Backend::Options;
  py::class_<Options, c10d::Backend::Options, c10::intrusive_ptr<Options>>(module, "Options")
      .def(py::init([](std::chrono::milliseconds timeout, std::string presented_name) {
             return c10::make_intrusive<Options>(timeout, std::move(presented_name));
           }),
           py::arg("timeout") = kBackendDefaultTimeout, py::arg("presented_name") = Backend::kName)
      .def_readwrite("test_stages_host_tensors", &Options::test_stages_host_tensors)
      .def_readwrite("test_stripe_bytes", &Options::test_stripe_bytes)
      .def("__copy__", [](const Options& self) { return Options::copy_of(self); })
      .def("__deepcopy__",
           [](const Options& self, const py::dict&) { return Options::copy_of(self); });

  py::class_<Backend, c10d::Backend, c10::intrusive_ptr<Backend>>(module, "Backend")
      .def(py::init([](FabricHandle& handle, int group_rank, int group_size, std::string group_name,
                       std::string identity, std::vector<int64_t> global_ranks,
                       const Options& options, std::string board, py::object keeper) {
             Membership membership{group_rank,
                                   group_size,
                                   std::move(group_name),
                                   std::move(identity),
                                   std::move(board),
                                   std::move(global_ranks),
                                   shared_with_threads(std::move(keeper))};
             const py::gil_scoped_release unlocked;
             return c10::make_intrusive<Backend>(handle.fabric, std::move(membership),
                                                 Options::copy_of(options), handle.eager_connect);
           }),
           py::kw_only(), py::arg("fabric"), py::arg("group_rank"), py::arg("group_size"),
           py::arg("group_name"), py::arg("identity"), py::arg("global_ranks"), py::arg("options"),
           py::arg("board") = "", py::arg("keeper") = py::none())
      .def_property_readonly("options", &Backend::own_options)
      // Gloo's and NCCL's name of set_timeout, which torch's _set_pg_timeout calls.
      .def("_set_default_timeout", &Backend::setTimeout, py::call_guard<py::gil_scoped_release>(),
           py::arg("timeout"))
      // Gloo's, for programs that ask its object and not its class.
      .def_static("create_device",
                  [](const py::args& given, const py::kwargs& named) {
                    return gloo_stand_in().attr("create_device")(*given, **named);
                  })
      .def_static("create_default_device",
                  [](const py::args& given, const py::kwargs& named) {
                    return gloo_stand_in().attr("create_default_device")(*given, **named);
                  })
      .def("get_error", &Backend::getError, py::call_guard<py::gil_scoped_release>())
      // torch asks for it on ranks outside a new group, where NCCL's split involves them. Ours does
      // not.
      .def("perform_nocolor_split", [](Backend&, const py::object& /*device*/) {});
}

}  // namespace
}  // namespace securefabric::torch_room

PYBIND11_MODULE(_C, module) {
  module.doc() = "The native core behind torch: fabric and backend.";
  // c10d's types must be registered before ours derive from them.
  py::module_::import("torch.distributed");
  securefabric::torch_room::learn_main_thread();
  securefabric::torch_room::bind_fabric(module);
  securefabric::torch_room::bind_backend(module);
  securefabric::torch_room::bind_store(module);
  module.def("store_prefix", &securefabric::torch_room::prefix_of, py::arg("store"));
  module.def("select_interfaces", &securefabric::torch_room::selected_interfaces,
             py::arg("grammar"));
}
