#include "net/fabric.h"

#include <algorithm>

#include "crypto/kdf.h"
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
constexpr Duration kResolveInterval = Duration::millis(20);
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

Duration spin_for(const FabricConfig& config) {
  if (config.spin == "never") return Duration();
  const unsigned cores = std::max(1u, std::thread::hardware_concurrency());
  const bool is_crowded = config.local_world_size > cores;
  if (config.spin == "auto" && is_crowded) return Duration::micros(20);
  return Duration::micros(200);
}

// One draw of entropy for everything that a process needs of it.
template <size_t Size>
Result<std::array<uint8_t, Size>> random_bytes() {
  std::array<uint8_t, Size> bytes{};
  if (const Status status = fill_entropy(bytes); !status) return status.error();
  return bytes;
}

}  // namespace

Result<std::shared_ptr<Fabric>> Fabric::make(const FabricConfig& config,
                                             const crypto::JobKey& job_key, Resolve resolve) {
  const auto provider = crypto::find_provider(job_key.suite());
  if (!provider) return provider.error();
  const auto locals = choose_addresses(config);
  if (!locals) return locals.error();

  std::shared_ptr<Fabric> fabric(new Fabric());
  fabric->datagram_bytes_max_ = transport::kDatagramBytesMax;
  std::vector<UdpSocket> sockets;
  UdpSocketOptions socket_options;
  socket_options.use_gso = config.use_gso;
  socket_options.use_gro = config.use_gro;
  for (const LocalAddress& local : locals.value()) {
    for (size_t i = 0; i < config.sockets_per_interface; ++i) {
      auto socket = UdpSocket::bind(local.address, socket_options);
      if (!socket) return socket.error();
      fabric->addresses_.push_back(socket.value().local_address());
      fabric->uses_gro_ = socket.value().grants().has_gro;
      sockets.push_back(std::move(socket).value());
    }
    fabric->datagram_bytes_max_ =
        std::min(fabric->datagram_bytes_max_, datagram_bytes_for(local));
  }
  if (sockets.size() > transport::kSocketsMax) {
    return Error{ErrorCode::kConfig,
                 std::to_string(sockets.size()) + " sockets are too many (" +
                     std::to_string(transport::kSocketsMax) +
                     "): choose fewer interfaces (SECUREFABRIC_SOCKET_IFNAME) or sockets "
                     "(SECUREFABRIC_SOCKETS_PER_INTERFACE)"};
  }

  auto private_key = random_bytes<32>();
  auto boot_id = random_bytes<16>();
  auto seeds = random_bytes<16>();
  if (!private_key) return private_key.error();
  if (!boot_id) return boot_id.error();
  if (!seeds) return seeds.error();
  base::ByteReader reader(seeds.value());

  transport::EndpointConfig endpoint;
  endpoint.rank = config.rank;
  endpoint.world_size = config.world_size;
  endpoint.aead = provider.value();
  endpoint.generation_bits = config.generation_bits != 0
                                 ? config.generation_bits
                                 : provider.value()->generation_bits_max();
  endpoint.private_key = crypto::SecretBuffer::copy_and_wipe(private_key.value());
  auto job_secret = base::to_vector(job_key.job_secret());
  endpoint.job_secret = crypto::SecretBuffer::copy_and_wipe(job_secret);
  endpoint.random_seed = reader.u64();
  endpoint.spi_base = base::Spi{reader.u32()};
  endpoint.socket_count = sockets.size();
  endpoint.paths_per_peer = config.paths_per_peer;
  endpoint.datagram_bytes_max = fabric->datagram_bytes_max_;
  endpoint.join_timeout = config.join_timeout;
  endpoint.death_timeout = config.death_timeout;
  endpoint.heartbeat = config.heartbeat;

  fabric->rank_ = config.rank;
  fabric->suite_ = job_key.suite();
  fabric->boot_id_ = boot_id.value();
  fabric->spi_base_ = endpoint.spi_base;
  fabric->join_timeout_ = config.join_timeout;
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

Fabric::~Fabric() {
  if (crypto::forked_child()) {
    // The threads are the parent's, and their locks may be held for ever: leave all as it is.
    (void)resolver_thread_.release();
    (void)driver_.release();
    return;
  }
  shutdown();
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
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    groups_[group_key] = group->ranks;
  }
  const Status status = driver_->run([&](collective::Engine& engine, Instant now) {
    engine.add_group(group);
    if (!eager_connect) return;
    for (const Rank peer : group->ranks) {
      if (peer != rank_) engine.endpoint().require_peer(peer, now);
    }
  });
  if (!status) return status.error();
  return group;
}

void Fabric::remove_group(const std::shared_ptr<collective::Group>& group,
                          const std::optional<Error>& reason) {
  (void)driver_->run([&](collective::Engine& engine, Instant now) {
    engine.remove_group(*group, now, reason);
  });
}

// Driving thread, engine held.
void Fabric::want(Rank rank) {
  const std::lock_guard<std::mutex> lock(mutex_);
  wanted_.try_emplace(rank, now());
  wake_.notify_one();
}

void Fabric::resolver_loop() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!is_stopping_) {
    std::vector<Rank> ranks;
    for (const auto& [rank, since] : wanted_) ranks.push_back(rank);
    lock.unlock();
    std::vector<Rank> answered;
    for (const Rank rank : ranks) {
      if (resolve_once(rank)) answered.push_back(rank);
    }
    lock.lock();
    for (const Rank rank : answered) wanted_.erase(rank);
    // The engine fails an operation whose peer does not come; asking on is of no use then.
    std::erase_if(wanted_, [this](const auto& entry) {
      return now() - entry.second > join_timeout_ + Duration::seconds(1);
    });
    if (is_stopping_) return;
    if (wanted_.empty()) {
      wake_.wait(lock, [this] { return is_stopping_ || !wanted_.empty(); });
    } else if (answered.empty()) {
      wake_.wait_for(lock, std::chrono::nanoseconds(kResolveInterval.nanos()));
    }
  }
}

bool Fabric::resolve_once(Rank rank) {
  std::vector<std::string> keys;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [key, ranks] : groups_) {
      if (std::find(ranks.begin(), ranks.end(), rank) != ranks.end()) keys.push_back(key);
    }
  }
  for (const std::string& key : keys) {
    auto peer = resolve_(key, rank);
    if (!peer) {
      (void)driver_->run([&](collective::Engine& engine, Instant at) {
        engine.fail_peer(rank, peer.error(), at);
      });
      return true;
    }
    if (!peer.value()) continue;
    (void)driver_->run([&](collective::Engine& engine, Instant at) {
      engine.install_peer(*peer.value(), at);
    });
    return true;
  }
  return false;
}

FabricStats Fabric::stats() {
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
        stats.paths_active += path.state == transport::PathState::kActive ? 1 : 0;
        stats.paths_used += path.message_bytes > 0 ? 1 : 0;
      }
    }
    stats.has_gso = true;
    for (const UdpSocket& socket : driver_->port().sockets()) {
      stats.has_gso = stats.has_gso && socket.grants().has_gso && socket.counters().gso_refused == 0;
      stats.kernel_drops += socket.counters().kernel_drops;
    }
  });
  return stats;
}

void Fabric::shutdown() {
  if (crypto::forked_child()) return;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    is_stopping_ = true;
    wake_.notify_one();
  }
  // The counters stay readable when the engine is gone.
  const FabricStats last = stats();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!final_stats_) final_stats_ = last;
  }
  driver_->shutdown(kDrainLimit);
  if (resolver_thread_ && resolver_thread_->joinable() &&
      resolver_thread_->get_id() != std::this_thread::get_id()) {
    resolver_thread_->join();
  }
}

}  // namespace securefabric::net
