#include "net/fabric.h"

#include <algorithm>
#include <exception>
#include <set>

#include "base/check.h"
#include "crypto/kdf.h"
#include "crypto/key_exchange.h"
#include "net/address.h"
#include "net/clock.h"
#include "net/entropy.h"
#include "net/interfaces.h"

namespace securefabric::net {

using base::Duration;
using base::Error;
using base::ErrorCode;
using base::Instant;
using base::Rank;
using base::Result;
using base::Status;

namespace {

constexpr Duration kDrainLimit = Duration::seconds(5);
const std::string kDigestLabel("sf1 group\0", 10);

struct LocalAddress {
  base::SocketAddress address;  // port 0
  uint32_t mtu = 0;             // of its interface
};

// The addresses that were asked for one by one, with what is known of their interfaces.
Result<std::vector<Interface>> find_addresses(const std::vector<std::string>& texts,
                                              const std::vector<Interface>& all) {
  std::vector<Interface> found;
  for (const std::string& text : texts) {
    const auto address = base::SocketAddress::parse_ip(text);
    if (!address) return address.error();
    Interface named;
    named.address = address.value();
    for (const Interface& interface : all) {
      if (interface.address.ip_text() == address.value().ip_text()) named = interface;
    }
    found.push_back(std::move(named));
  }
  return found;
}

Result<std::vector<LocalAddress>> choose_addresses(const FabricConfig& config) {
  const auto all = list_interfaces();
  if (!all) return all.error();
  auto selected = config.addresses.empty() ? select_interfaces(all.value(), config.interfaces)
                                           : find_addresses(config.addresses, all.value());
  if (!selected) return selected.error();
  auto wide = drop_narrow(selected.value(), transport::kDatagramBytesMin);
  if (!wide) return wide.error();
  const size_t sockets =
      std::min(transport::kSocketsMax, transport::kSocketsOfRankMax / config.engines);
  const size_t addresses = std::max<size_t>(1, sockets / config.sockets_per_interface);
  std::vector<LocalAddress> chosen;
  for (const Interface& interface : keep_first(std::move(wide).value(), addresses)) {
    chosen.push_back({interface.address, interface.mtu});
  }
  return chosen;
}

// The largest datagram between hosts that fits the interface without fragments; whole cipher
// blocks.
size_t datagram_bytes_for(const LocalAddress& local) {
  const size_t overhead = local.address.is_ipv6() ? kIpv6Overhead : kIpv4Overhead;
  if (local.mtu < transport::kDatagramBytesMin + overhead) return transport::kDatagramBytesMin;
  const size_t payload = std::min(local.mtu - overhead, transport::kDatagramBytesJumbo);
  return payload - payload % transport::kFragmentAlignment;
}

// Whether all peers can be sent the largest datagrams: they are on this host, and its buffers have
// room for a few from each of them. Smaller ones would be overrun.
bool carries_largest(const std::vector<LocalAddress>& locals, uint64_t receive_budget,
                     uint32_t world_size) {
  constexpr uint64_t kPacketsPerPeer = 3;
  constexpr size_t kDatagram = transport::kDatagramBytesMax + kIpv6Overhead;
  const uint64_t peers = std::max<uint64_t>(1, world_size - 1);
  return receive_budget >= kPacketsPerPeer * transport::kDatagramBytesMax * peers &&
         std::all_of(locals.begin(), locals.end(), [](const LocalAddress& local) {
           return local.address.is_loopback() && local.mtu >= kDatagram;
         });
}

// Binds to the first port of the configured range that can be had: the sockets of a rank, and ranks
// that share a host, share the range.
Result<UdpSocket> bind_in_range(const LocalAddress& local, const FabricConfig& config,
                                const UdpSocketOptions& options) {
  if (config.port_first == 0) return UdpSocket::bind(local.address, options);
  Result<UdpSocket> socket = Error{ErrorCode::kConfig, "the range is empty"};
  for (uint32_t port = config.port_first; port <= config.port_last; ++port) {
    socket = UdpSocket::bind(local.address.with_port(static_cast<uint16_t>(port)), options);
    if (socket || socket.error().code != ErrorCode::kConfig) return socket;
  }
  return Error{ErrorCode::kConfig,
               "none of the UDP ports " + std::to_string(config.port_first) + " to " +
                   std::to_string(config.port_last) + " (SECUREFABRIC_PORTS) can be had on " +
                   local.address.ip_text() + " (" + socket.error().message +
                   "); each rank of this host needs " +
                   std::to_string(config.sockets_per_interface * config.engines) +
                   " on each interface: widen the range" +
                   (config.engines > 1 ? " or lower SECUREFABRIC_ENGINES" : "")};
}

Duration spin_for(const FabricConfig& config) {
  if (config.spin == "never") return Duration();
  const unsigned cores = std::max(1u, std::thread::hardware_concurrency());
  // Engines beyond the first sleep while nothing arrives; when it does, each keeps a core busy.
  const bool is_crowded = config.local_world_size * config.engines > cores;
  if (config.spin == "auto" && is_crowded) return Duration::micros(20);
  return Duration::micros(200);
}

// A third of what three sockets' buffers take, or of all if there are fewer: all of it may come to
// one of them, and the kernel counts more than the bytes.
uint64_t receive_budget(const std::vector<UdpSocket>& sockets) {
  uint64_t smallest = UINT64_MAX;
  for (const UdpSocket& socket : sockets) {
    smallest = std::min<uint64_t>(smallest, socket.grants().receive_buffer_bytes);
  }
  return std::max(smallest * std::min<size_t>(sockets.size(), 3) / 3, transport::kPeerWindowMin);
}

// One draw of entropy for everything that a process needs of it.
template <size_t Size>
Result<std::array<uint8_t, Size>> random_bytes() {
  std::array<uint8_t, Size> bytes{};
  if (const Status status = fill_entropy(bytes); !status) return status.error();
  return bytes;
}

// A generator that worked when the fabric was made and fails later leaves nothing safe to go on
// with.
crypto::SecretBuffer draw_private_key() {
  auto key = crypto::SecretBuffer::allocate(crypto::kPrivateKeyBytes);
  SF_CHECK_MSG(fill_entropy(key.bytes()).ok(), "the kernel's random generator fails");
  return key;
}

uint64_t draw_challenge() {
  const auto bytes = random_bytes<8>();
  SF_CHECK_MSG(bytes.ok(), "the kernel's random generator fails");
  return base::ByteReader(bytes.value()).u64();
}

Status check_count(size_t sockets) {
  if (sockets <= transport::kSocketsMax) return base::ok_status();
  return Error{ErrorCode::kConfig,
               std::to_string(sockets) + " sockets are too many (" +
                   std::to_string(transport::kSocketsMax) +
                   "): choose fewer interfaces (SECUREFABRIC_SOCKET_IFNAME) or sockets "
                   "(SECUREFABRIC_SOCKETS_PER_INTERFACE)"};
}

}  // namespace

// What all engines of a process are made of.
struct Fabric::Materials {
  const FabricConfig& config;
  const crypto::AeadProvider& provider;
  const std::vector<LocalAddress>& locals;  // where each engine binds its sockets
  const crypto::SecretBuffer& job_secret;
};

Result<std::shared_ptr<Fabric>> Fabric::make(const FabricConfig& config, crypto::Suite suite,
                                             crypto::SecretBuffer job_secret, Resolve resolve) {
  SF_CHECK(config.engines >= 1);
  const auto provider = crypto::find_provider(suite);
  if (!provider) return provider.error();
  const auto locals = choose_addresses(config);
  if (!locals) return locals.error();
  auto boot_id = random_bytes<16>();
  if (!boot_id) return boot_id.error();

  std::shared_ptr<Fabric> fabric(new Fabric(), &Fabric::destroy);
  fabric->rank_ = config.rank;
  fabric->world_size_ = config.world_size;
  fabric->suite_ = suite;
  fabric->boot_id_ = boot_id.value();
  fabric->join_timeout_ = config.join_timeout;
  fabric->tuning_ = config.tuning;
  fabric->resolve_ = std::move(resolve);
  // The most that any interface takes; what a path takes is found out. See carries_largest.
  fabric->datagram_bytes_max_ = transport::kDatagramBytesMin;
  for (const LocalAddress& local : locals.value()) {
    fabric->datagram_bytes_max_ = std::max(fabric->datagram_bytes_max_, datagram_bytes_for(local));
  }
  const Materials common{config, *provider.value(), locals.value(), job_secret};
  for (size_t engine = 0; engine < config.engines; ++engine) {
    if (const Status status = fabric->make_engine(common); !status) return status.error();
  }
  Fabric* raw = fabric.get();
  fabric->resolver_thread_ = std::make_unique<std::thread>([raw] { raw->resolver_loop(); });
  return fabric;
}

// Everything random is drawn anew: engines have no key, no SPI and no address in common.
Status Fabric::make_engine(const Materials& common) {
  const FabricConfig& config = common.config;
  const auto number = static_cast<uint32_t>(drivers_.size());
  EngineEntry entry;
  std::vector<UdpSocket> sockets;
  const UdpSocketOptions options{.use_gso = config.use_gso, .use_gro = config.use_gro};
  for (const LocalAddress& local : common.locals) {
    for (size_t i = 0; i < config.sockets_per_interface; ++i) {
      auto socket = bind_in_range(local, config, options);
      if (!socket) return socket.error();
      entry.addresses.push_back(socket.value().local_address());
      uses_gro_ = socket.value().grants().has_gro;
      sockets.push_back(std::move(socket).value());
    }
  }
  if (const Status status = check_count(sockets.size()); !status) return status;
  const uint64_t budget = receive_budget(sockets);
  if (number == 0 && carries_largest(common.locals, budget, config.world_size)) {
    datagram_bytes_max_ = transport::kDatagramBytesMax;
  }

  auto private_key = crypto::SecretBuffer::allocate(crypto::kPrivateKeyBytes);
  if (const Status status = fill_entropy(private_key.bytes()); !status) return status;
  auto seeds = random_bytes<16>();
  if (!seeds) return seeds.error();
  base::ByteReader reader(seeds.value());

  transport::EndpointConfig endpoint;
  endpoint.rank = config.rank;
  endpoint.world_size = config.world_size;
  endpoint.engine = number;
  endpoint.aead = &common.provider;
  endpoint.generation_bits =
      config.generation_bits != 0 ? config.generation_bits : common.provider.generation_bits_max();
  endpoint.private_key = std::move(private_key);
  endpoint.job_secret = crypto::SecretBuffer::allocate(common.job_secret.size());
  std::ranges::copy(common.job_secret.view(), endpoint.job_secret.bytes().begin());
  endpoint.draw_private_key = draw_private_key;
  endpoint.draw_challenge = draw_challenge;
  endpoint.epoch_limits = {config.epoch_age, config.epoch_bytes,
                           uint64_t{1} << (common.provider.forgery_bits_max() - 1)};
  endpoint.random_seed = reader.u64();
  endpoint.spi_base = entry.spi_base = base::Spi{reader.u32()};
  for (const UdpSocket& socket : sockets) {
    endpoint.sockets.push_back(socket.local_address().family());
  }
  endpoint.paths_per_peer = config.paths_per_peer;
  endpoint.datagram_bytes_max = datagram_bytes_max_;
  endpoint.receive_budget_bytes = budget;
  endpoint.join_timeout = config.join_timeout;
  endpoint.death_timeout = config.death_timeout;
  endpoint.heartbeat = config.heartbeat;

  auto driver = Driver::make(
      std::move(endpoint), std::move(sockets),
      DriverOptions{spin_for(config), /*yields_while_spinning=*/true},
      [this, number](const transport::PeerWanted& wanted) { want(wanted, number); },
      [this, number](const collective::GroupBroken& broken) { on_broken(number, broken); });
  if (!driver) return driver.error();
  (void)driver.value()->run([&entry](collective::Engine& engine, Instant) {
    entry.public_key = engine.endpoint().public_key();
  });
  entries_.push_back(std::move(entry));
  drivers_.push_back(std::move(driver).value());
  return base::ok_status();
}

void Fabric::destroy(Fabric* fabric) {
  if (!crypto::forked_child()) delete fabric;
}

Status Fabric::set_entry(base::Bytes entry) {
  for (const auto& driver : drivers_) {
    const Status status =
        driver->run([entry = base::to_vector(entry)](collective::Engine& engine, Instant) {
          engine.endpoint().set_own_entry(entry);
        });
    if (!status) return status;
  }
  return base::ok_status();
}

// Who is in a group may have come from a store that nobody vouches for.
Status Fabric::check_members(const GroupSpec& spec) const {
  const auto refusal = [&spec](const std::string& why) {
    return Error{ErrorCode::kConfig, "process group '" + spec.name + "' cannot be made: " + why};
  };
  if (spec.rank >= spec.ranks.size() || spec.ranks[spec.rank] != rank_) {
    return refusal("rank " + std::to_string(spec.rank) + " of its " +
                   std::to_string(spec.ranks.size()) +
                   " members is not this rank of the job, rank " + std::to_string(rank_.value));
  }
  std::set<Rank> seen;
  for (const Rank member : spec.ranks) {
    const std::string named = "its member rank " + std::to_string(member.value);
    if (member.value >= world_size_) {
      return refusal(named + " is outside of a job of " + std::to_string(world_size_) + " ranks");
    }
    if (!seen.insert(member).second) return refusal(named + " comes twice");
  }
  return base::ok_status();
}

// Of a group that is about to be made. Only while holding no engine: the first one's lock guards
// the numbers, for a forked child may not wait for any other.
Result<crypto::Hash> Fabric::digest_of_next(const std::string& identity) {
  uint64_t number = 0;
  const Status status = drivers_.front()->run([&](collective::Engine&, Instant) {
    number = made_[crypto::sha256({base::as_bytes(identity)})]++;
  });
  if (!status) return status.error();
  std::array<uint8_t, 8> bytes;
  base::ByteWriter(bytes).u64(number);
  return crypto::sha256({base::as_bytes(kDigestLabel), bytes, base::as_bytes(identity)});
}

Result<Fabric::Groups> Fabric::add_group(const GroupSpec& spec, bool eager_connect) {
  if (const Status status = check_members(spec); !status) return status.error();
  const auto digest = digest_of_next(spec.identity);
  if (!digest) return digest.error();
  collective::Group described;
  base::ByteReader reader(digest.value());
  described.wire_id = reader.u64();
  std::ranges::copy(reader.rest(), described.tail.begin());
  described.name = spec.name;
  described.rank = spec.rank;
  described.ranks = spec.ranks;
  Groups groups;
  for (uint32_t number = 0; number < drivers_.size(); ++number) {
    auto group = std::make_shared<collective::Group>(described);
    group->engine = number;
    Status added = base::ok_status();
    const Status status = drivers_[number]->run(
        [&](collective::Engine& engine, Instant) { added = engine.add_group(group); });
    // All engines have the same groups, so only the first one can refuse.
    if (!status || !added) return status ? added.error() : status.error();
    groups.push_back(std::move(group));
  }
  // In a forked child, where no engine runs, the mutex may be held for ever.
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    groups_[described.wire_id] = {spec.board, spec.ranks};
    // Members may have been looked for in vain, because no group of theirs was known.
    for (const Rank member : spec.ranks) {
      if (const auto at = wanted_.find(member); at != wanted_.end()) at->second.next_at = now();
    }
    wake_.notify_one();
  }
  if (groups.size() > 1) spread_breaks(groups);
  if (!eager_connect) return groups;
  if (const Status status = connect_group(groups); !status) return status.error();
  return groups;
}

// A member may have given up already: engines that did not know the group then could not follow.
void Fabric::spread_breaks(const Groups& groups) {
  for (const auto& group : groups) {
    std::optional<Error> broken;
    (void)drivers_[group->engine]->run(
        [&](collective::Engine&, Instant) { broken = group->broken; });
    if (broken) on_broken(group->engine, {group->wire_id, *broken, std::nullopt});
  }
}

Status Fabric::connect_group(const Groups& groups) {
  for (const auto& group : groups) {
    const Status status =
        drivers_[group->engine]->run([&](collective::Engine& engine, Instant now) {
          for (const Rank peer : group->ranks) {
            if (peer != rank_) engine.endpoint().require_peer(peer, now);
          }
          // The engine looks at what its endpoint has to say, here whom to look for, when called.
          engine.handle_timeout(now);
        });
    if (!status) return status;
  }
  return base::ok_status();
}

void Fabric::remove_group(const Groups& groups, const std::optional<Error>& reason) {
  if (!crypto::forked_child()) {
    const std::lock_guard<std::mutex> lock(mutex_);
    groups_.erase(groups.front()->wire_id);
  }
  for (const auto& group : groups) {
    (void)drivers_[group->engine]->run(
        [&](collective::Engine& engine, Instant now) { engine.remove_group(*group, now, reason); });
  }
}

void Fabric::abort_group(const Groups& groups, const Error& error) {
  for (const auto& group : groups) {
    (void)drivers_[group->engine]->run(
        [&](collective::Engine& engine, Instant now) { engine.abort_group(*group, error, now); });
  }
}

// The task is in the others' hands before the failed operation is seen to have ended: whoever sees
// that and starts another one finds the group broken in every engine.
void Fabric::on_broken(uint32_t origin, const collective::GroupBroken& broken) {
  for (uint32_t number = 0; number < drivers_.size(); ++number) {
    if (number == origin) continue;
    drivers_[number]->hand_in(
        [broken](collective::Engine& engine, Instant now) { engine.follow(broken, now); });
  }
}

FabricStats Fabric::stats() {
  if (crypto::forked_child()) return {};
  if (std::lock_guard<std::mutex> lock(mutex_); final_stats_) return *final_stats_;
  FabricStats stats;
  stats.engines = drivers_.size();
  stats.has_gso = true;
  stats.has_gro = uses_gro_;
  for (const auto& driver : drivers_) add_stats(*driver, stats);
  return stats;
}

void Fabric::add_stats(Driver& driver, FabricStats& stats) const {
  const Status status = driver.run([&](collective::Engine& engine, Instant) {
    const transport::Endpoint& endpoint = engine.endpoint();
    transport::add_counters(stats.traffic, endpoint.traffic());
    transport::add_counters(stats.drops, endpoint.drops());
    size_t peers = 0;
    for (const auto& [rank, paths] : endpoint.paths()) {
      peers += paths.empty() ? 0 : 1;
      for (const transport::PathReport& path : paths) {
        const bool is_active = path.state == transport::PathState::kActive ||
                               path.state == transport::PathState::kAvoided;
        stats.paths_active += is_active ? 1 : 0;
        stats.paths_used += path.message_bytes > 0 ? 1 : 0;
      }
    }
    stats.peers = std::max(stats.peers, peers);
    for (const UdpSocket& socket : driver.port().sockets()) {
      stats.has_gso =
          stats.has_gso && socket.grants().has_gso && socket.counters().gso_refused == 0;
      stats.kernel_drops += socket.counters().kernel_drops;
      stats.drops.too_short += socket.counters().receive_empty;  // come no further than here
    }
  });
  if (!status) stats.has_gso = false;
}

std::vector<FabricPath> Fabric::paths() {
  std::vector<FabricPath> all;
  if (crypto::forked_child()) return all;
  for (uint32_t number = 0; number < drivers_.size(); ++number) {
    (void)drivers_[number]->run([&](collective::Engine& engine, Instant) {
      for (const auto& [rank, reports] : engine.endpoint().paths()) {
        for (const auto& report : reports) all.push_back({number, rank, report});
      }
    });
  }
  return all;
}

void Fabric::drain_group(const Groups& groups, Duration limit) {
  const Instant until = now() + limit;
  for (const auto& group : groups) drivers_[group->engine]->drain(until - now(), group->wire_id);
}

void Fabric::shutdown() {
  // Without an engine, it was never made completely.
  if (crypto::forked_child() || drivers_.empty()) return;
  // The counters stay readable when the engines are gone.
  const FabricStats last = stats();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!final_stats_) final_stats_ = last;
  }
  // Draining may still need peers to be found. No engine says goodbye before all have drained: to
  // a peer it would be the end of what the others have sent.
  const Instant until = now() + kDrainLimit;
  for (size_t number = 1; number < drivers_.size(); ++number) {
    drivers_[number]->drain(until - now());
  }
  for (const auto& driver : drivers_) driver->shutdown(until - now());
  std::unique_ptr<std::thread> thread;  // to join: only one caller gets it
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    is_stopping_ = true;
    wake_.notify_one();
    thread = std::move(resolver_thread_);
  }
  if (!thread) return;
  thread->join();
  resolve_ = nullptr;  // it may hold who holds us, and the job key with it
}

}  // namespace securefabric::net
