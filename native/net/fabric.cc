#include "net/fabric.h"

#include <algorithm>
#include <exception>

#include "crypto/kdf.h"
#include "crypto/key_exchange.h"
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

constexpr size_t kIpv4Overhead = 28;  // IP and UDP headers
constexpr size_t kIpv6Overhead = 48;
// An entry is there at the first look, unless the rank is late: each look asks a server that all
// ranks share, so it is asked less and less often.
constexpr Duration kResolveIntervalMin = Duration::millis(20);
constexpr Duration kResolveIntervalMax = Duration::millis(500);
constexpr Duration kDrainLimit = Duration::seconds(5);

struct LocalAddress {
  base::SocketAddress address;  // port 0
  uint32_t mtu = 0;             // of its interface
};

Result<std::vector<LocalAddress>> choose_addresses(const FabricConfig& config) {
  const auto all = list_interfaces();
  if (!all) return all.error();
  std::vector<LocalAddress> chosen;
  if (!config.addresses.empty()) {
    for (const std::string& text : config.addresses) {
      const auto address = base::SocketAddress::parse_ip(text);
      if (!address) return address.error();
      uint32_t mtu = 0;
      for (const Interface& interface : all.value()) {
        if (interface.address.ip_text() == address.value().ip_text()) mtu = interface.mtu;
      }
      chosen.push_back({address.value(), mtu});
    }
    return chosen;
  }
  const auto selected = select_interfaces(all.value(), config.interfaces);
  if (!selected) return selected.error();
  for (const Interface& interface : selected.value()) {
    chosen.push_back({interface.address, interface.mtu});
  }
  return chosen;
}

// The largest datagram that fits the interface without fragments; whole cipher blocks.
size_t datagram_bytes_for(const LocalAddress& local) {
  const size_t overhead = local.address.is_ipv6() ? kIpv6Overhead : kIpv4Overhead;
  if (local.mtu < transport::kDatagramBytesMin + overhead) return transport::kDatagramBytesMin;
  const size_t payload = std::min(local.mtu - overhead, transport::kDatagramBytesMax);
  return payload - payload % transport::kFragmentAlignment;
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
  return Error{ErrorCode::kConfig, "none of the UDP ports " + std::to_string(config.port_first) +
                                       " to " + std::to_string(config.port_last) +
                                       " (SECUREFABRIC_PORTS) can be had on " +
                                       local.address.ip_text() + " (" + socket.error().message +
                                       "); each rank of this host needs " +
                                       std::to_string(config.sockets_per_interface) +
                                       " on each interface: widen the range"};
}

Duration spin_for(const FabricConfig& config) {
  if (config.spin == "never") return Duration();
  const unsigned cores = std::max(1u, std::thread::hardware_concurrency());
  const bool is_crowded = config.local_world_size > cores;
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

Status check_count(size_t sockets) {
  if (sockets <= transport::kSocketsMax) return base::ok_status();
  return Error{ErrorCode::kConfig,
               std::to_string(sockets) + " sockets are too many (" +
                   std::to_string(transport::kSocketsMax) +
                   "): choose fewer interfaces (SECUREFABRIC_SOCKET_IFNAME) or sockets "
                   "(SECUREFABRIC_SOCKETS_PER_INTERFACE)"};
}

}  // namespace

Result<std::shared_ptr<Fabric>> Fabric::make(const FabricConfig& config, crypto::Suite suite,
                                             crypto::SecretBuffer job_secret, Resolve resolve) {
  const auto provider = crypto::find_provider(suite);
  if (!provider) return provider.error();
  const auto locals = choose_addresses(config);
  if (!locals) return locals.error();

  std::shared_ptr<Fabric> fabric(new Fabric(), &Fabric::destroy);
  // The most that any interface takes; what a path takes is found out.
  fabric->datagram_bytes_max_ = transport::kDatagramBytesMin;
  std::vector<UdpSocket> sockets;
  const UdpSocketOptions options{.use_gso = config.use_gso, .use_gro = config.use_gro};
  for (const LocalAddress& local : locals.value()) {
    for (size_t i = 0; i < config.sockets_per_interface; ++i) {
      auto socket = bind_in_range(local, config, options);
      if (!socket) return socket.error();
      fabric->addresses_.push_back(socket.value().local_address());
      fabric->uses_gro_ = socket.value().grants().has_gro;
      sockets.push_back(std::move(socket).value());
    }
    fabric->datagram_bytes_max_ = std::max(fabric->datagram_bytes_max_, datagram_bytes_for(local));
  }
  if (const Status status = check_count(sockets.size()); !status) return status.error();

  auto private_key = crypto::SecretBuffer::allocate(crypto::kPrivateKeyBytes);
  if (const Status status = fill_entropy(private_key.bytes()); !status) return status.error();
  auto boot_id = random_bytes<16>();
  auto seeds = random_bytes<16>();
  if (!boot_id) return boot_id.error();
  if (!seeds) return seeds.error();
  base::ByteReader reader(seeds.value());

  transport::EndpointConfig endpoint;
  endpoint.rank = config.rank;
  endpoint.world_size = config.world_size;
  endpoint.aead = provider.value();
  endpoint.generation_bits = config.generation_bits != 0 ? config.generation_bits
                                                         : provider.value()->generation_bits_max();
  endpoint.private_key = std::move(private_key);
  endpoint.job_secret = std::move(job_secret);
  endpoint.draw_private_key = draw_private_key;
  endpoint.epoch_limits = {config.epoch_age, config.epoch_bytes,
                           uint64_t{1} << (provider.value()->forgery_bits_max() - 1)};
  endpoint.random_seed = reader.u64();
  endpoint.spi_base = base::Spi{reader.u32()};
  for (const UdpSocket& socket : sockets) {
    endpoint.sockets.push_back(socket.local_address().family());
  }
  endpoint.paths_per_peer = config.paths_per_peer;
  endpoint.datagram_bytes_max = fabric->datagram_bytes_max_;
  endpoint.receive_budget_bytes = receive_budget(sockets);
  endpoint.join_timeout = config.join_timeout;
  endpoint.death_timeout = config.death_timeout;
  endpoint.heartbeat = config.heartbeat;

  fabric->rank_ = config.rank;
  fabric->suite_ = suite;
  fabric->boot_id_ = boot_id.value();
  fabric->spi_base_ = endpoint.spi_base;
  fabric->join_timeout_ = config.join_timeout;
  fabric->tuning_ = config.tuning;
  fabric->resolve_ = std::move(resolve);
  Fabric* raw = fabric.get();
  auto driver = Driver::make(std::move(endpoint), std::move(sockets),
                             DriverOptions{spin_for(config), /*yields_while_spinning=*/true},
                             [raw](Rank rank) { raw->want(rank); });
  if (!driver) return driver.error();
  fabric->driver_ = std::move(driver).value();
  (void)fabric->driver_->run([raw](collective::Engine& engine, Instant) {
    raw->public_key_ = engine.endpoint().public_key();
  });
  fabric->resolver_thread_ = std::make_unique<std::thread>([raw] { raw->resolver_loop(); });
  return fabric;
}

void Fabric::destroy(Fabric* fabric) {
  if (!crypto::forked_child()) delete fabric;
}

Status Fabric::set_entry(base::Bytes entry) {
  return driver_->run([entry = base::to_vector(entry)](collective::Engine& engine, Instant) {
    engine.endpoint().set_own_entry(entry);
  });
}

Result<std::shared_ptr<collective::Group>> Fabric::add_group(const std::string& group_key,
                                                             const std::string& name, uint32_t rank,
                                                             std::vector<Rank> ranks,
                                                             bool eager_connect) {
  auto group = std::make_shared<collective::Group>();
  // The key is unguessable and never repeats, so 64 bits of its digest tell all groups apart.
  const crypto::Hash digest = crypto::sha256({base::as_bytes(group_key)});
  group->wire_id = base::ByteReader(digest).u64();
  group->name = name;
  group->rank = rank;
  group->ranks = std::move(ranks);
  // In a forked child the mutex may be held for ever.
  if (!crypto::forked_child()) {
    const std::lock_guard<std::mutex> lock(mutex_);
    groups_[group->wire_id] = {group_key, group->ranks};
    // Members may have been looked for in vain, because no group of theirs was known.
    for (const Rank member : group->ranks) {
      if (const auto at = wanted_.find(member); at != wanted_.end()) at->second.next_at = now();
    }
    wake_.notify_one();
  }
  const Status status = driver_->run([&](collective::Engine& engine, Instant now) {
    engine.add_group(group);
    if (!eager_connect) return;
    for (const Rank peer : group->ranks) {
      if (peer != rank_) engine.endpoint().require_peer(peer, now);
    }
    // The engine looks at what its endpoint has to say, here whom to look for, when it is called.
    engine.handle_timeout(now);
  });
  if (!status) return status.error();
  return group;
}

void Fabric::remove_group(const std::shared_ptr<collective::Group>& group,
                          const std::optional<Error>& reason) {
  if (!crypto::forked_child()) {
    const std::lock_guard<std::mutex> lock(mutex_);
    groups_.erase(group->wire_id);
  }
  (void)driver_->run(
      [&](collective::Engine& engine, Instant now) { engine.remove_group(*group, now, reason); });
}

// Driving thread, engine held. A rank is asked for when an operation needs it, and at most once a
// second when packets come from it: worth a look now, but not to start over with quick ones.
void Fabric::want(Rank rank) {
  const Instant at = now();
  const std::lock_guard<std::mutex> lock(mutex_);
  Wanted& wanted = wanted_.try_emplace(rank, Wanted{at, at, kResolveIntervalMin}).first->second;
  wanted.since = at;
  wanted.next_at = at;
  wake_.notify_one();
}

void Fabric::resolver_loop() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!is_stopping_) {
    const Instant at = now();
    // The engine fails an operation whose peer does not come; asking on is of no use then.
    std::erase_if(wanted_, [&](const auto& entry) {
      return at - entry.second.since > join_timeout_ + Duration::seconds(1);
    });
    Instant next_at;
    if (const auto rank = next_due(at, next_at)) {
      lock.unlock();
      const bool is_answered = resolve_once(*rank);
      lock.lock();
      if (is_answered) wanted_.erase(*rank);
    } else if (next_at.is_never()) {
      wake_.wait(lock);
    } else {
      wake_.wait_for(lock, std::chrono::nanoseconds((next_at - at).nanos()));
    }
  }
}

std::optional<Rank> Fabric::next_due(Instant at, Instant& next_at) {
  next_at = Instant::never();
  if (driver_->is_ending()) return std::nullopt;
  std::optional<Rank> first;
  for (const auto& [rank, wanted] : wanted_) {
    if (wanted.next_at >= next_at) continue;
    next_at = wanted.next_at;
    first = rank;
  }
  if (!first || next_at > at) return std::nullopt;
  Wanted& due = wanted_.at(*first);
  due.next_at = at + due.interval;
  due.interval = base::shorter(due.interval * 2, kResolveIntervalMax);
  return first;
}

bool Fabric::resolve_once(Rank rank) {
  std::vector<std::string> keys;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [id, group] : groups_) {
      const auto& ranks = group.ranks;
      if (std::find(ranks.begin(), ranks.end(), rank) != ranks.end()) keys.push_back(group.key);
    }
  }
  for (const std::string& key : keys) {
    if (is_stopping_) return false;
    const auto peer = look_up(key, rank);
    if (peer && !peer.value()) continue;
    (void)driver_->run([&](collective::Engine& engine, Instant at) {
      if (peer) {
        engine.install_peer(*peer.value(), at);
      } else {
        engine.fail_peer(rank, peer.error(), at);
      }
    });
    return true;
  }
  return false;
}

Result<std::optional<transport::PeerDescription>> Fabric::look_up(const std::string& group_key,
                                                                  Rank rank) const {
  try {
    return resolve_(group_key, rank);
  } catch (const std::exception& raised) {
    return Error{ErrorCode::kSystem, "the entry of rank " + std::to_string(rank.value) +
                                         " cannot be read: " + raised.what()};
  }
}

FabricStats Fabric::stats() {
  if (crypto::forked_child()) return {};
  if (std::lock_guard<std::mutex> lock(mutex_); final_stats_) return *final_stats_;
  FabricStats stats;
  stats.has_gro = uses_gro_;
  (void)driver_->run([&](collective::Engine& engine, Instant) {
    const transport::Endpoint& endpoint = engine.endpoint();
    stats.traffic = endpoint.traffic();
    stats.drops = endpoint.drops();
    for (const auto& [rank, paths] : endpoint.paths()) {
      stats.peers += paths.empty() ? 0 : 1;
      for (const transport::PathReport& path : paths) {
        const bool is_active = path.state == transport::PathState::kActive ||
                               path.state == transport::PathState::kAvoided;
        stats.paths_active += is_active ? 1 : 0;
        stats.paths_used += path.message_bytes > 0 ? 1 : 0;
      }
    }
    stats.has_gso = true;
    for (const UdpSocket& socket : driver_->port().sockets()) {
      stats.has_gso =
          stats.has_gso && socket.grants().has_gso && socket.counters().gso_refused == 0;
      stats.kernel_drops += socket.counters().kernel_drops;
      stats.drops.too_short += socket.counters().receive_empty;  // come no further than here
    }
  });
  return stats;
}

std::vector<std::pair<Rank, std::vector<transport::PathReport>>> Fabric::paths() {
  std::vector<std::pair<Rank, std::vector<transport::PathReport>>> reports;
  if (crypto::forked_child()) return reports;
  (void)driver_->run(
      [&](collective::Engine& engine, Instant) { reports = engine.endpoint().paths(); });
  return reports;
}

void Fabric::shutdown() {
  // Without a driver, it was never made completely.
  if (crypto::forked_child() || !driver_) return;
  // The counters stay readable when the engine is gone.
  const FabricStats last = stats();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!final_stats_) final_stats_ = last;
  }
  // Draining may still need peers to be found.
  driver_->shutdown(kDrainLimit);
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
