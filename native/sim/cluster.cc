#include "sim/cluster.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/check.h"

namespace securefabric::sim {

using base::Instant;
using base::Rank;
using base::SocketAddress;
using collective::Engine;
using collective::Group;
using collective::Operation;

namespace {

// An address says which rank and socket it is: 10.<rank, 24 bits>, port kPortBase + socket.
constexpr uint16_t kPortBase = 4000;

SocketAddress address_of(uint32_t rank, size_t socket) {
  return SocketAddress::ipv4({10, static_cast<uint8_t>(rank >> 16), static_cast<uint8_t>(rank >> 8),
                              static_cast<uint8_t>(rank)},
                             static_cast<uint16_t>(kPortBase + socket));
}

Rank rank_of(const SocketAddress& address) {
  const base::Bytes ip = address.ip_bytes();
  return Rank{static_cast<uint32_t>(ip[1] << 16 | ip[2] << 8 | ip[3])};
}

std::string text_of(base::Bytes bytes) {
  return {bytes.begin(), bytes.end()};
}

// The suite does not matter here, but not every CPU runs every suite in constant time.
const crypto::AeadProvider* any_provider() {
  for (const crypto::Suite suite : crypto::all_suites()) {
    if (const auto provider = crypto::find_provider(suite)) return provider.value();
  }
  SF_CHECK_MSG(false, "no cipher suite runs on this CPU");
}

crypto::SecretBuffer random_secret(base::Random& random, size_t size) {
  crypto::SecretBuffer secret = crypto::SecretBuffer::allocate(size);
  random.fill(secret.bytes());
  return secret;
}

}  // namespace

Cluster::Cluster(ClusterOptions options)
    : options_(std::move(options)),
      aead_(any_provider()),
      network_(options_.link, options_.network, options_.sockets_per_rank, options_.seed) {
  SF_CHECK(options_.ranks >= 1 && options_.sockets_per_rank >= 1);
  if (options_.is_recorded) audit_.start_recording();
  base::Random random(options_.seed);
  nodes_.resize(options_.ranks);
  for (uint32_t rank = 0; rank < options_.ranks; ++rank) make_node(rank, random);
  std::vector<uint32_t> everybody(options_.ranks);
  std::iota(everybody.begin(), everybody.end(), 0);
  const auto groups = make_group("world", everybody);
  for (uint32_t rank = 0; rank < options_.ranks; ++rank) nodes_[rank].world = groups[rank];
}

void Cluster::make_node(uint32_t rank, base::Random& random) {
  transport::EndpointConfig config;
  config.rank = Rank{rank};
  config.world_size = options_.ranks;
  config.aead = aead_;
  config.generation_bits = options_.generation_bits;
  config.private_key = random_secret(random, crypto::kPrivateKeyBytes);
  base::Random of_job(options_.impostors.contains(rank) ? ~options_.seed : options_.seed);
  config.job_secret = random_secret(of_job, 32);
  config.spi_base = base::Spi{static_cast<uint32_t>(random.next())};
  config.sockets.assign(options_.sockets_per_rank, base::AddressFamily::kIpv4);
  config.paths_per_peer = options_.paths_per_peer;
  config.datagram_bytes_max = options_.datagram_bytes_max;
  config.burst_segments_max = options_.burst_segments_max;
  config.draw_private_key = [this, rank, draws = base::Random(random.next())]() mutable {
    return draw_epoch_key(rank, draws);
  };
  config.draw_challenge = [draws = base::Random(config.spi_base.value)]() mutable {
    return draws.next();
  };
  config.epoch_limits = options_.epoch_limits;
  config.random_seed = random.next();
  config.join_timeout = options_.join_timeout;
  config.death_timeout = options_.death_timeout;
  config.heartbeat = options_.heartbeat;
  config.receive_budget_bytes = options_.receive_budget_bytes;
  config.heeds_delay = options_.heeds_delay;
  config.sprays_blind = options_.sprays_blind;

  SimulatedKeys keys{text_of(config.private_key.view()),
                     "",
                     text_of(config.job_secret.view()),
                     config.spi_base.value,
                     {}};
  Node& node = nodes_[rank];
  transport::PeerDescription& entry = node.entry;
  entry.rank = config.rank;
  random.fill(entry.boot_id);
  entry.spi_base = config.spi_base;
  entry.datagram_bytes_max = config.datagram_bytes_max;
  for (size_t socket = 0; socket < options_.sockets_per_rank; ++socket) {
    entry.addresses.push_back(address_of(rank, socket));
  }
  node.engine = std::make_unique<Engine>(std::move(config));
  node.host = std::make_unique<Host>(options_.host, options_.sockets_per_rank);
  entry.public_key = base::to_vector(node.engine->endpoint().public_key());
  // Opaque to the core; equal on both ends and different for every rank and run.
  entry.entry.assign(entry.boot_id.begin(), entry.boot_id.end());
  entry.entry.insert(entry.entry.end(), entry.public_key.begin(), entry.public_key.end());
  node.engine->endpoint().set_own_entry(entry.entry);
  keys.entry = text_of(entry.entry);
  if (options_.is_recorded) key_log_.push_back(std::move(keys));
  node.is_alive = !options_.absent.contains(rank);
  if (node.is_alive) board_.publish(entry);
}

crypto::SecretBuffer Cluster::draw_epoch_key(uint32_t rank, base::Random& random) {
  auto key = random_secret(random, crypto::kPrivateKeyBytes);
  if (options_.is_recorded) key_log_.at(rank).epoch_private_keys.push_back(text_of(key.view()));
  return key;
}

void Cluster::join(uint32_t rank) {
  Node& node = nodes_.at(rank);
  SF_CHECK(!node.is_alive);
  node.is_alive = true;
  for (const Rank asking : board_.publish(node.entry)) ask_board(asking.value, rank);
}

std::vector<std::shared_ptr<Group>> Cluster::make_group(const std::string& name,
                                                        const std::vector<uint32_t>& ranks) {
  const uint64_t wire_id = next_group_id_++;
  std::vector<std::shared_ptr<Group>> groups;
  for (uint32_t i = 0; i < ranks.size(); ++i) {
    auto group = std::make_shared<Group>();
    group->wire_id = wire_id;
    group->tail.fill(static_cast<uint8_t>(wire_id));
    group->name = name;
    group->rank = i;
    for (const uint32_t rank : ranks) group->ranks.push_back(Rank{rank});
    SF_CHECK(nodes_.at(ranks[i]).engine->add_group(group).ok());
    groups.push_back(std::move(group));
  }
  return groups;
}

void Cluster::start(uint32_t rank, const std::shared_ptr<Operation>& operation) {
  SF_CHECK(nodes_.at(rank).is_alive);
  nodes_[rank].engine->start(operation, now_);
  touch(rank);
}

void Cluster::kill(uint32_t rank) {
  nodes_.at(rank).is_alive = false;
  touched_.erase(rank);
}

void Cluster::leave(uint32_t rank) {
  transport::Transmit burst;
  for (int copy = 0; copy < transport::kGoodbyeCopies; ++copy) {
    engine(rank).endpoint().post_goodbye();
    while (engine(rank).poll_transmit(now_, burst)) transmit(rank, burst, now_);
  }
  kill(rank);
}

void Cluster::script_healing(Instant when) {
  at(when, [this] { network_.heal(); });
}

std::vector<Route> Cluster::all_routes() const {
  std::vector<Route> routes;
  for (uint32_t from = 0; from < options_.ranks; ++from) {
    for (uint32_t to = 0; to < options_.ranks; ++to) {
      if (from == to) continue;
      for (size_t a = 0; a < options_.sockets_per_rank; ++a) {
        for (size_t b = 0; b < options_.sockets_per_rank; ++b) {
          routes.push_back(
              {Rank{from}, Rank{to}, static_cast<uint8_t>(a), static_cast<uint8_t>(b)});
        }
      }
    }
  }
  return routes;
}

void Cluster::set_blackhole(const Route& route, bool is_blackhole) {
  link(route).options().is_blackhole = is_blackhole;
  link({route.to, route.from, route.to_socket, route.from_socket}).options().is_blackhole =
      is_blackhole;
}

void Cluster::set_blackhole_everywhere(bool is_blackhole) {
  network_.apply({{}, find_link_knob("down"), is_blackhole ? 1.0 : 0.0});
}

void Cluster::script(const LinkEvent& event) {
  for (const TimedChange& timed : expand(event)) {
    at(timed.at, [this, change = timed.change] { network_.apply(change); });
  }
}

void Cluster::at(Instant when, std::function<void()> action) {
  SF_CHECK(when >= now_);
  events_.push(when, std::move(action));
}

void Cluster::run_for(base::Duration duration) {
  run_until([] { return false; }, now_ + duration);
}

bool Cluster::run_until(const std::function<bool()>& done, Instant deadline) {
  while (true) {
    run_turns();
    if (!is_sound()) return false;
    if (done()) return true;
    const Instant next = events_.next_at();
    if (next > deadline) {
      now_ = std::max(now_, deadline);
      return false;
    }
    if (next > now_) rounds_at_instant_ = 0;
    now_ = next;
    while (!events_.empty() && events_.next_at() == now_) {
      Event event = events_.pop();
      handle(event);
    }
  }
}

void Cluster::handle(Event& event) {
  if (auto* parcel = std::get_if<Parcel>(&event)) {
    const uint64_t size = parcel->bytes.size();
    network_bytes_ -= size;
    if (parcel->hop != Hop::kArrived) return carry(std::move(*parcel));
    const uint32_t rank = parcel->route.to.value;
    if (!nodes_[rank].is_alive) return;
    if (nodes_[rank].host->admit(std::move(*parcel))) {
      network_bytes_ += size;
    } else {
      ++socket_drops_;
    }
    touch(rank);
  } else if (const auto* timer = std::get_if<Timer>(&event)) {
    Node& node = nodes_[timer->rank];
    if (node.timer_at <= now_) node.timer_at = Instant::never();
    if (node.is_alive) touch(timer->rank);
  } else if (const auto* answer = std::get_if<BoardAnswer>(&event)) {
    if (!nodes_[answer->asking].is_alive) return;
    const auto* entry = board_.look_up(Rank{answer->asking}, Rank{answer->wanted});
    if (entry == nullptr) return;
    Engine& engine = *nodes_[answer->asking].engine;
    if (answer->is_hint) {
      engine.learn_peer(*entry, now_);
    } else {
      engine.install_peer(*entry, now_);
    }
    touch(answer->asking);
  } else {
    std::get<Action>(event)();
  }
}

// Each rank that was touched takes one turn; what it completes may start operations elsewhere.
void Cluster::run_turns() {
  while (!touched_.empty() && is_sound()) {
    const std::set<uint32_t> ranks = std::exchange(touched_, {});
    for (const uint32_t rank : ranks) {
      if (!nodes_[rank].is_alive) continue;
      if (nodes_[rank].busy_until > now_) {
        wake_at(rank, nodes_[rank].busy_until);
      } else {
        turn(rank);
      }
    }
    if (++rounds_at_instant_ > kRoundsPerInstantMax) {
      breakdown_ = "virtual time stands still: rank " + std::to_string(*ranks.begin()) +
                   " asks for a timeout that it does not serve";
    }
    if (events_.size() > kEventsMax) breakdown_ = "more than kEventsMax events are outstanding";
    if (network_bytes_ > kNetworkBytesMax) breakdown_ = "more than kNetworkBytesMax are on links";
  }
}

void Cluster::turn(uint32_t rank) {
  Node& node = nodes_[rank];
  Engine& engine = *node.engine;
  Instant done_at = now_ + receive(rank);
  if (engine.poll_timeout() <= now_) engine.handle_timeout(now_);
  while (engine.poll_broken()) {  // there is no other engine to tell
  }
  while (const auto operation = engine.poll_completed()) {
    audit_.on_event(now_, Rank{rank}, operation->id << 1 | (operation->error ? 1 : 0));
    if (operation->on_done) operation->on_done();
  }
  while (const auto wanted = engine.poll_wanted()) {
    ask_board(rank, wanted->peer.value, wanted->is_hint);
  }
  transport::Transmit burst;
  while (engine.poll_transmit(now_, burst)) {
    const size_t datagrams = (burst.bytes.size() + burst.segment_bytes - 1) / burst.segment_bytes;
    done_at = done_at + options_.host.cost(1, datagrams, burst.bytes.size());
    transmit(rank, burst, done_at);
  }
  node.busy_until = done_at;
  if (node.host->has_waiting()) touch(rank);
  wake_at(rank, std::max(engine.poll_timeout(), done_at));
}

// Hands in what waits in the sockets and returns the CPU time that took.
base::Duration Cluster::receive(uint32_t rank) {
  Node& node = nodes_[rank];
  const bool is_limited = options_.host.has_costs();
  base::Duration spent;
  std::optional<Route> last;  // datagrams of one route that wait together are one call (GRO)
  for (uint32_t count = 0; node.host->has_waiting(); ++count) {
    if (is_limited && count == kReceivesPerTurn) break;
    const Parcel parcel = node.host->take();
    spent = spent + options_.host.cost(parcel.route == last ? 0 : 1, 1, parcel.bytes.size());
    last = parcel.route;
    network_bytes_ -= parcel.bytes.size();
    node.engine->handle_datagram(now_, parcel.route.to_socket, parcel.is_marked_ce, parcel.bytes);
  }
  return spent;
}

void Cluster::ask_board(uint32_t asking, uint32_t wanted, bool is_hint) {
  events_.push(now_ + options_.board_delay, BoardAnswer{asking, wanted, is_hint});
}

void Cluster::wake_at(uint32_t rank, Instant at) {
  Node& node = nodes_[rank];
  if (at >= node.timer_at) return;
  node.timer_at = at;
  events_.push(at, Timer{rank});
}

// Every segment of a burst is a datagram of its own on the link.
void Cluster::transmit(uint32_t rank, const transport::Transmit& burst, Instant at) {
  SF_CHECK(burst.segment_bytes > 0 && !burst.bytes.empty());
  SF_CHECK(burst.bytes.size() <= transport::kBurstBytesMax);
  SF_CHECK(burst.bytes.size() <= burst.segment_bytes * options_.burst_segments_max);
  const Route route{Rank{rank}, rank_of(burst.to), burst.socket,
                    static_cast<uint8_t>(burst.to.port() - kPortBase)};
  for (base::Bytes rest = burst.bytes; !rest.empty();) {
    const size_t size = std::min(rest.size(), burst.segment_bytes);
    audit_.on_datagram(at, route, rest.first(size));
    Parcel parcel{route, Hop::kSenderPort, false, base::to_vector(rest.first(size))};
    if (at == now_) {
      carry(std::move(parcel));
    } else {
      push(at, std::move(parcel));
    }
    rest = rest.subspan(size);
  }
  check_window(route, burst);
}

// Single datagrams may be probes, which go beyond the window; what follows in a burst may not. The
// last datagram may begin within the window and end beyond.
void Cluster::check_window(const Route& route, const transport::Transmit& burst) {
  if (burst.bytes.size() <= burst.segment_bytes) return;
  const auto path = nodes_[route.from.value].engine->endpoint().path(
      route.to, base::PathId::from_sockets(route.from_socket, route.to_socket));
  if (path && path->in_flight_bytes > path->window_bytes + burst.segment_bytes) {
    audit_.report(route, std::to_string(path->in_flight_bytes) +
                             " bytes are in flight, in a window of " +
                             std::to_string(path->window_bytes));
  }
}

void Cluster::push(Instant at, Parcel parcel) {
  network_bytes_ += parcel.bytes.size();
  network_bytes_max_ = std::max(network_bytes_max_, network_bytes_);
  events_.push(at, std::move(parcel));
}

void Cluster::carry(Parcel parcel) {
  transfers_.clear();
  network_.send(now_, std::move(parcel), transfers_);
  for (Transfer& transfer : transfers_) {
    push(transfer.at, std::move(transfer.parcel));
  }
}

LinkCounters Cluster::link_counters() const {
  LinkCounters total;
  for (const auto& [key, link] : network_.links()) total.add(link->counters());
  return total;
}

transport::TrafficCounters Cluster::traffic() const {
  transport::TrafficCounters total;
  for (const Node& node : nodes_) transport::add_counters(total, node.engine->endpoint().traffic());
  return total;
}

transport::DropCounters Cluster::drops() const {
  transport::DropCounters total;
  for (const Node& node : nodes_) transport::add_counters(total, node.engine->endpoint().drops());
  return total;
}

}  // namespace securefabric::sim
