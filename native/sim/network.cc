#include "sim/network.h"

#include <utility>

#include "base/check.h"
#include "base/random.h"

namespace securefabric::sim {

using base::Instant;
using base::Rank;

namespace {

uint64_t mix(uint64_t a, uint64_t b) {
  return base::Random(a ^ base::Random(b).next()).next();
}

void move(LinkOptions& options, const LinkChange& change) {
  const double at = change.knob->read(options);
  const double way = (change.value - at) / change.steps_left;
  change.knob->write(options, change.steps_left == 1 ? change.value : at + way);
}

}  // namespace

uint64_t Network::hash(const Route& route) const {
  const uint64_t ranks = uint64_t{route.from.value} << 32 | route.to.value;
  const uint64_t sockets = uint64_t{route.from_socket} << 8 | route.to_socket;
  return mix(mix(seed_, ranks), ~sockets);
}

LinkKey Network::key_of(Hop hop, const Route& route) const {
  if (hop == Hop::kSenderPort) return {hop, route.from, route.from, 0};
  if (hop == Hop::kReceiverPort) return {hop, route.to, route.to, 0};
  const bool goes_up = route.from < route.to;
  if (options_.parallel_links == 0) {
    const uint32_t low = goes_up ? route.from_socket : route.to_socket;
    const uint32_t high = goes_up ? route.to_socket : route.from_socket;
    return {hop, route.from, route.to, static_cast<uint32_t>(low * sockets_) + high};
  }
  const auto index = static_cast<uint32_t>(hash(route) % options_.parallel_links);
  if (options_.is_shared) return {hop, Rank{goes_up ? 0u : 1u}, Rank{goes_up ? 1u : 0u}, index};
  return {hop, route.from, route.to, index};
}

LinkOptions& Network::options_of(Hop hop) {
  if (hop == Hop::kSenderPort) return options_.sender_port;
  return hop == Hop::kReceiverPort ? options_.receiver_port : wire_;
}

Link& Network::link(const LinkKey& key) {
  std::unique_ptr<Link>& slot = links_[key];
  if (slot) return *slot;
  LinkOptions options = options_of(key.hop);
  for (const LinkChange& change : changes_) {
    if (is_selected(key, change.links)) move(options, change);
  }
  const uint64_t ends = uint64_t{key.from.value} << 32 | key.to.value;
  const uint64_t which = uint64_t{key.index} << 8 | static_cast<uint64_t>(key.hop);
  slot = std::make_unique<Link>(options, mix(mix(seed_, ends), which));
  return *slot;
}

bool Network::is_selected(const LinkKey& key, const LinkSelector& links) const {
  if (key.hop != links.hop) return false;
  if (links.index && *links.index != key.index) return false;
  if (options_.is_shared && key.hop == Hop::kWire) {
    return !links.from || !links.to || (*links.from < *links.to) == (key.from < key.to);
  }
  return (!links.from || *links.from == key.from) && (!links.to || *links.to == key.to);
}

void Network::apply(const LinkChange& change) {
  SF_CHECK(change.knob != nullptr && change.steps_left >= 1);
  // What is overwritten need not be remembered: the list stays short however long links flap.
  if (change.steps_left == 1) {
    std::erase_if(changes_, [&](const LinkChange& older) {
      return older.links == change.links && older.knob == change.knob;
    });
  }
  changes_.push_back(change);
  for (const auto& [key, link] : links_) {
    if (is_selected(key, change.links)) move(link->options(), change);
  }
}

void Network::heal() {
  for (const Hop hop : {Hop::kSenderPort, Hop::kWire, Hop::kReceiverPort}) {
    const LinkOptions& old = options_of(hop);
    LinkOptions clean;
    clean.latency = old.latency;
    clean.rate_bits_per_second = old.rate_bits_per_second;
    clean.queue_bytes_max = old.queue_bytes_max;
    clean.mark_above_bytes = old.mark_above_bytes;
    clean.bad_end = 1;  // of a burst of losses that goes on
    options_of(hop) = clean;
  }
  changes_.clear();
  for (const auto& [key, link] : links_) link->options() = options_of(key.hop);
}

void Network::send(Instant now, Parcel parcel, std::vector<Transfer>& out) {
  // Ports without a rate are not there.
  if (parcel.hop == Hop::kSenderPort && options_.sender_port.rate_bits_per_second == 0) {
    parcel.hop = Hop::kWire;
  }
  const Hop hop = parcel.hop;
  SF_CHECK(hop != Hop::kArrived);
  Hop next = static_cast<Hop>(static_cast<uint8_t>(hop) + 1);
  if (next == Hop::kReceiverPort && options_.receiver_port.rate_bits_per_second == 0) {
    next = Hop::kArrived;
  }
  deliveries_.clear();
  link(key_of(hop, parcel.route)).send(now, std::move(parcel.bytes), deliveries_);
  for (Delivery& delivery : deliveries_) {
    out.push_back({delivery.at,
                   {parcel.route, next, parcel.is_marked_ce || delivery.is_marked_ce,
                    std::move(delivery.bytes)}});
  }
}

}  // namespace securefabric::sim
