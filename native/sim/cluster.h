// N ranks in one thread and in virtual time: real engines, a bulletin board, hosts, and the network
// between them.
//
//   EventQueue ─► datagram ─► Network: the next hop, or Host: a socket's buffer
//              └► timer, board answer, scripted action ─► engine of a rank
//   a rank's turn: datagrams of its sockets ─► engine ─► poll_completed, poll_wanted,
//                  poll_transmit ─► WireAudit ─► Network ─► EventQueue
//
// Everything that happens at one instant is handed out first; then every rank that was touched
// takes its turn, in the order of ranks, as net/driver does on sockets. Where CPU time costs
// something, a turn lasts: bursts leave when they are made, and the next turn waits. The same
// options and the same calls give the same history, bit by bit.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "collective/engine.h"
#include "sim/board.h"
#include "sim/event_queue.h"
#include "sim/host.h"
#include "sim/network.h"
#include "sim/timeline.h"
#include "sim/wire_audit.h"

namespace securefabric::sim {

struct ClusterOptions {
  uint32_t ranks = 2;                   // of the world
  uint64_t seed = 1;                    // of keys, links and jitter
  size_t sockets_per_rank = 2;          // each pair of sockets is a route of its own
  size_t paths_per_peer = 4;            // of these routes, how many a rank uses to each peer
  unsigned generation_bits = 22;        // log2 of the packets sealed under one key
  transport::EpochLimits epoch_limits;  // when a link's keys are replaced
  size_t datagram_bytes_max = transport::kDatagramBytesJumbo;
  size_t burst_segments_max = transport::kBurstSegmentsMax;
  LinkOptions link;                                        // of every wire at the start
  NetworkOptions network;                                  // which wires and ports there are
  HostOptions host;                                        // of every rank
  base::Duration board_delay = base::Duration::millis(2);  // of a look-up
  base::Duration join_timeout = transport::kJoinTimeoutDefault;
  base::Duration death_timeout = transport::kDeathTimeoutDefault;
  base::Duration heartbeat = transport::kHeartbeatDefault;
  uint64_t receive_budget_bytes = transport::kReceiveBudgetDefault;  // see EndpointConfig
  bool heeds_delay = true;       // see EndpointConfig: for comparisons
  bool sprays_blind = false;     // likewise
  std::set<uint32_t> absent;     // ranks that do not start by themselves
  std::set<uint32_t> impostors;  // ranks that hold another job secret
  bool is_recorded = false;      // keep datagrams and simulated keys, see Cluster::key_log()
};

// What a second implementation needs to open what a simulated rank sends and receives. These keys
// come from the seed and protect nothing; processes on sockets have no such log.
struct SimulatedKeys {
  std::string private_key;                      // X25519
  std::string entry;                            // as published
  std::string job_secret;                       // of all ranks but impostors
  uint32_t spi_base = 0;                        // what the rank expects in packets to it
  std::vector<std::string> epoch_private_keys;  // X25519, of all its links, in the order of drawing
};

class Cluster {
 public:
  // Datagrams, timers and actions that may be outstanding; more means that something is unbounded.
  static constexpr size_t kEventsMax = 1 << 20;
  // Bytes of the datagrams that may be on links and in socket buffers.
  static constexpr uint64_t kNetworkBytesMax = uint64_t{4} << 30;
  // Rounds of turns at one instant; more means that an engine asks for a timeout in the past.
  static constexpr uint32_t kRoundsPerInstantMax = 1000;
  // Datagrams that a rank whose CPU is not free of charge receives in one turn.
  static constexpr uint32_t kReceivesPerTurn = 64;

  explicit Cluster(ClusterOptions options);
  Cluster(const Cluster&) = delete;
  Cluster& operator=(const Cluster&) = delete;

  // --- The ranks ---
  uint32_t size() const { return options_.ranks; }
  collective::Engine& engine(uint32_t rank) { return *nodes_.at(rank).engine; }
  // The group of all ranks, as `rank` holds it.
  const std::shared_ptr<collective::Group>& world(uint32_t rank) { return nodes_.at(rank).world; }
  // Makes a group of some ranks on each of them.
  std::vector<std::shared_ptr<collective::Group>> make_group(const std::string& name,
                                                             const std::vector<uint32_t>& ranks);
  void start(uint32_t rank, const std::shared_ptr<collective::Operation>& operation);
  // The engine of this rank was called from outside: it gets a turn.
  void touch(uint32_t rank) { touched_.insert(rank); }
  // An absent rank starts after all.
  void join(uint32_t rank);
  // The process stops at this instant, without a word.
  void kill(uint32_t rank);
  // Says goodbye as a driver does at shutdown, and stops.
  void leave(uint32_t rank);
  bool is_alive(uint32_t rank) const { return nodes_.at(rank).is_alive; }

  // --- The links ---
  // The wire that a route crosses; made on first use.
  Link& link(const Route& route) { return network_.wire(route); }
  const Network& network() const { return network_; }
  // Lets an event of the future happen.
  void script(const LinkEvent& event);
  // Lets the network heal (see there) at this instant.
  void script_healing(base::Instant when);
  // Every route that the sockets of two different ranks make, in order.
  std::vector<Route> all_routes() const;
  // The routes of both directions of one pair of sockets, as the lower rank's sockets name it.
  void set_blackhole(const Route& route, bool is_blackhole);
  void set_blackhole_everywhere(bool is_blackhole);

  // --- Time ---
  base::Instant now() const { return now_; }
  void at(base::Instant when, std::function<void()> action);
  void after(base::Duration delay, std::function<void()> action) {
    at(now_ + delay, std::move(action));
  }
  // Runs until `done` says so (true) or virtual time reaches `deadline` (false). A cluster whose
  // checkers have found something stops at once (false).
  bool run_until(const std::function<bool()>& done, base::Instant deadline);
  void run_for(base::Duration duration);

  // --- What happened ---
  WireAudit& audit() { return audit_; }
  const std::vector<std::string>& violations() const { return audit_.violations(); }
  // Of the simulator's own bounds: an engine that spins, a queue without end.
  const std::string& breakdown() const { return breakdown_; }
  bool is_sound() const { return violations().empty() && breakdown_.empty(); }
  uint64_t trace_hash() const { return audit_.trace_hash(); }
  LinkCounters link_counters() const;
  // By rank; empty unless recorded.
  const std::vector<SimulatedKeys>& key_log() const { return key_log_; }
  const char* suite() const { return crypto::suite_name(aead_->suite()); }
  // Datagrams that a socket's buffer had no room for, of all ranks.
  uint64_t socket_drops() const { return socket_drops_; }
  // The most bytes that were on links and in socket buffers at a time.
  uint64_t network_bytes_max() const { return network_bytes_max_; }
  transport::TrafficCounters traffic() const;
  transport::DropCounters drops() const;
  const ClusterOptions& options() const { return options_; }

 private:
  struct Node {
    std::unique_ptr<collective::Engine> engine;
    std::shared_ptr<collective::Group> world;         // as this rank holds it
    transport::PeerDescription entry;                 // as published, or to be published by join()
    bool is_alive = true;                             // killed and departed ranks take no turns
    base::Instant timer_at = base::Instant::never();  // earliest timer in the queue
    base::Instant busy_until;                         // end of the last turn
    std::unique_ptr<Host> host;                       // its sockets
  };
  struct Timer {
    uint32_t rank = 0;
  };
  struct BoardAnswer {
    uint32_t asking = 0;
    uint32_t wanted = 0;
    bool is_hint = false;  // see PeerWanted
  };
  using Action = std::function<void()>;
  // A parcel that was transmitted within a turn that lasts enters the network as an event, too.
  using Event = std::variant<Parcel, Timer, BoardAnswer, Action>;

  void make_node(uint32_t rank, base::Random& random);
  crypto::SecretBuffer draw_epoch_key(uint32_t rank, base::Random& random);
  void handle(Event& event);
  void run_turns();
  void turn(uint32_t rank);
  base::Duration receive(uint32_t rank);
  // The burst leaves at `at`, now or later.
  void transmit(uint32_t rank, const transport::Transmit& burst, base::Instant at);
  void carry(Parcel parcel);
  void push(base::Instant at, Parcel parcel);
  void check_window(const Route& route, const transport::Transmit& burst);
  void ask_board(uint32_t asking, uint32_t wanted, bool is_hint = false);
  void wake_at(uint32_t rank, base::Instant at);

  ClusterOptions options_;
  const crypto::AeadProvider* aead_;  // of a suite this CPU runs
  base::Instant now_;                 // virtual; starts at 0
  EventQueue<Event> events_;
  std::vector<Node> nodes_;             // by rank
  std::vector<SimulatedKeys> key_log_;  // see key_log()
  std::set<uint32_t> touched_;          // ranks that take a turn before time goes on
  Network network_;
  Board board_;
  WireAudit audit_;
  std::string breakdown_;            // see breakdown()
  uint32_t rounds_at_instant_ = 0;   // turns taken without time going on
  uint64_t next_group_id_ = 1;       // wire ids
  uint64_t socket_drops_ = 0;        // see socket_drops()
  uint64_t network_bytes_ = 0;       // of the parcels that are events or wait in a socket
  uint64_t network_bytes_max_ = 0;   // see network_bytes_max()
  std::vector<Transfer> transfers_;  // scratch of carry()
};

}  // namespace securefabric::sim
