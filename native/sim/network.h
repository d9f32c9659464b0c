// The links between all sockets, and which of them a datagram crosses.
//
//   socket ─► sender port ─► one of the wires between the two ranks ─► receiver port ─► socket
//             (of the rank)  (parallel links, by hash; or a wire of its     (of the rank)
//                             own for each pair of sockets)
//
// Without further ado every pair of sockets has a wire of its own. With `parallel_links` a switch
// hashes the addresses and ports of a datagram onto so many links, as ECMP does, so that paths may
// collide; `is_shared` makes these links the spine of the whole network, one set for all ranks. A
// port is the one link of a rank to its switch: what a rank sends or receives shares its queue, so
// that many senders can overrun one receiver.
//
// Links are made on first use. A change of links (`apply`) is remembered, and holds for those that
// are made later.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "base/ids.h"
#include "sim/knobs.h"
#include "sim/link.h"

namespace securefabric::sim {

// From one socket to another.
struct Route {
  base::Rank from;          // sender
  base::Rank to;            // receiver
  uint8_t from_socket = 0;  // of the sender
  uint8_t to_socket = 0;    // of the receiver
  auto operator<=>(const Route&) const = default;
};

// A port's wire is short.
inline LinkOptions port_options() {
  LinkOptions options;
  options.latency = base::Duration::micros(1);
  return options;
}

struct NetworkOptions {
  uint32_t parallel_links = 0;  // between two ranks; 0: one for each pair of sockets
  bool is_shared = false;       // the parallel links are the same for all pairs of ranks
  // Used when their rate is not 0.
  LinkOptions sender_port = port_options();
  LinkOptions receiver_port = port_options();
};

// Where a datagram stands.
enum class Hop : uint8_t { kSenderPort, kWire, kReceiverPort, kArrived };

struct Parcel {
  Route route;
  Hop hop = Hop::kSenderPort;  // what it has reached and not yet crossed
  bool is_marked_ce = false;   // by a queue on its way
  std::vector<uint8_t> bytes;  // the datagram, perhaps damaged
};

// A parcel that reaches its next hop at `at`.
struct Transfer {
  base::Instant at;
  Parcel parcel;
};

// What tells one link from another.
struct LinkKey {
  Hop hop = Hop::kWire;
  base::Rank from;     // of its direction; of a shared link 0 or 1
  base::Rank to;       // likewise; a port's other end is its own rank
  uint32_t index = 0;  // of the parallel links; otherwise low rank's socket * sockets + the other's
  auto operator<=>(const LinkKey&) const = default;
};

// Some links. What is not said is not asked for: the default are all wires.
struct LinkSelector {
  Hop hop = Hop::kWire;
  std::optional<uint32_t> index;   // see LinkKey
  std::optional<base::Rank> from;  // sending rank; of a shared link: see `to`
  // Receiving rank. Of shared links, which belong to no rank, from and to together choose the
  // direction: upwards, as from a lower rank to a higher one, or downwards.
  std::optional<base::Rank> to;
  bool operator==(const LinkSelector&) const = default;
};

// One knob of some links moves towards a value: at once when one step is left, else by its share
// of the way.
struct LinkChange {
  LinkSelector links;
  const LinkKnob* knob = nullptr;  // of link_knobs()
  double value = 0;                // where it goes
  uint32_t steps_left = 1;         // this step included
};

class Network {
 public:
  // `wire` describes every link between two ranks.
  Network(const LinkOptions& wire, const NetworkOptions& options, size_t sockets_per_rank,
          uint64_t seed)
      : wire_(wire), options_(options), sockets_(sockets_per_rank), seed_(seed) {}

  // Lets a parcel cross the hop it has reached; appends what comes out at the other end. `now`
  // never decreases.
  void send(base::Instant now, Parcel parcel, std::vector<Transfer>& out);
  void apply(const LinkChange& change);
  // Every link is again as it was at the start, and without any fault: what is left of it is rate,
  // latency and queue.
  void heal();

  // The link that a route crosses between the two ranks.
  Link& wire(const Route& route) { return link(key_of(Hop::kWire, route)); }
  const std::map<LinkKey, std::unique_ptr<Link>>& links() const { return links_; }

 private:
  LinkKey key_of(Hop hop, const Route& route) const;
  Link& link(const LinkKey& key);
  LinkOptions& options_of(Hop hop);
  bool is_selected(const LinkKey& key, const LinkSelector& links) const;
  uint64_t hash(const Route& route) const;

  LinkOptions wire_;  // as given
  NetworkOptions options_;
  size_t sockets_;  // of each rank
  uint64_t seed_;   // of every link's seed and of the switches' hash
  std::map<LinkKey, std::unique_ptr<Link>> links_;
  std::vector<LinkChange> changes_;   // to be repeated on links made later, in order
  std::vector<Delivery> deliveries_;  // scratch of send()
};

}  // namespace securefabric::sim
