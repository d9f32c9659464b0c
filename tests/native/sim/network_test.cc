#include "sim/network.h"

#include <gtest/gtest.h>

#include <set>

namespace securefabric::sim {
namespace {

using base::Duration;
using base::Instant;
using base::Rank;

const std::vector<uint8_t> kDatagram(1'000, 7);

// Sends a datagram along a route until it arrives; nothing when it is lost.
std::optional<Instant> cross(Network& network, Instant now, const Route& route) {
  std::vector<Transfer> transfers{{now, {route, Hop::kSenderPort, false, kDatagram}}};
  while (transfers.back().parcel.hop != Hop::kArrived) {
    Transfer next = std::move(transfers.back());
    transfers.clear();
    network.send(next.at, std::move(next.parcel), transfers);
    if (transfers.empty()) return std::nullopt;
  }
  return transfers.back().at;
}

Route route_of(uint32_t from, uint32_t to, uint8_t from_socket = 0, uint8_t to_socket = 0) {
  return {Rank{from}, Rank{to}, from_socket, to_socket};
}

LinkOptions slow_link() {
  LinkOptions link;
  link.rate_bits_per_second = 8'000'000;  // a datagram per millisecond
  link.latency = Duration::micros(10);
  return link;
}

LinkChange change_of(const char* knob, double value, LinkSelector links = {}) {
  return {links, find_link_knob(knob), value};
}

size_t wires_of(Network& network, const std::vector<Route>& routes) {
  std::set<Link*> wires;
  for (const Route& route : routes) wires.insert(&network.wire(route));
  return wires.size();
}

TEST(Network, wire__each_pair_of_sockets_has_its_own) {
  Network network({}, {}, 2, 1);
  EXPECT_EQ(wires_of(network, {route_of(0, 1), route_of(0, 1, 1), route_of(0, 1, 0, 1),
                               route_of(1, 0), route_of(0, 2)}),
            5u);
}

TEST(Network, wire__parallel_links_are_chosen_by_hash) {
  NetworkOptions options;
  options.parallel_links = 4;
  Network network({}, options, 8, 1);
  std::map<Link*, int> flows;
  for (uint8_t a = 0; a < 8; ++a) {
    for (uint8_t b = 0; b < 8; ++b) ++flows[&network.wire(route_of(0, 1, a, b))];
  }
  ASSERT_EQ(flows.size(), 4u);
  for (const auto& [link, count] : flows) EXPECT_NEAR(count, 16, 12);
  // The two directions are hashed on their own, and so is every pair of ranks.
  EXPECT_EQ(wires_of(network, {route_of(0, 1), route_of(1, 0), route_of(0, 2)}), 3u);
}

TEST(Network, wire__shared_links_serve_all_ranks_and_each_direction) {
  NetworkOptions options;
  options.parallel_links = 1;
  options.is_shared = true;
  Network network({}, options, 2, 1);
  EXPECT_EQ(wires_of(network, {route_of(0, 1), route_of(2, 3, 1, 1)}), 1u);
  EXPECT_EQ(wires_of(network, {route_of(0, 1), route_of(1, 0)}), 2u);
}

TEST(Network, send__a_shared_link_is_a_bottleneck_for_all) {
  NetworkOptions options;
  options.parallel_links = 1;
  options.is_shared = true;
  Network network(slow_link(), options, 2, 1);
  const Instant start;
  EXPECT_EQ(cross(network, start, route_of(0, 1)), start + Duration::micros(1'010));
  EXPECT_EQ(cross(network, start, route_of(2, 3)), start + Duration::micros(2'010));
}

TEST(Network, send__many_senders_share_the_receivers_port) {
  NetworkOptions options;
  options.receiver_port = slow_link();
  options.receiver_port.queue_bytes_max = 3'000;
  Network network({}, options, 1, 1);
  const Instant start;
  for (uint32_t sender = 1; sender <= 3; ++sender) {
    EXPECT_EQ(cross(network, start, route_of(sender, 0)),
              start + Duration::micros(60) + Duration::millis(sender));
  }
  EXPECT_EQ(cross(network, start, route_of(4, 0)), std::nullopt);
  EXPECT_TRUE(cross(network, start, route_of(4, 1)));
}

TEST(Network, send__sender_port_comes_first_and_marks_stay) {
  NetworkOptions options;
  options.sender_port = slow_link();
  options.sender_port.mark_above_bytes = 1;
  Network network({}, options, 1, 1);
  std::vector<Transfer> out;
  for (uint32_t to = 1; to <= 2; ++to) {
    network.send(Instant(), {route_of(0, to), Hop::kSenderPort, false, kDatagram}, out);
  }
  EXPECT_EQ(out[1].parcel.hop, Hop::kWire);
  EXPECT_EQ(out[1].at, Instant() + Duration::micros(2'010));
  EXPECT_TRUE(out[1].parcel.is_marked_ce);
  network.send(out[1].at, std::move(out[1].parcel), out);
  EXPECT_EQ(out[2].parcel.hop, Hop::kArrived);
  EXPECT_TRUE(out[2].parcel.is_marked_ce);
}

TEST(Network, apply__selected_links_change_also_those_made_later) {
  Network network({}, {}, 2, 1);
  LinkSelector one_way;
  one_way.from = Rank{0};
  one_way.index = 1;  // low rank's socket 0, high rank's socket 1
  const auto passes = [&](const Route& route) { return cross(network, {}, route).has_value(); };
  EXPECT_TRUE(passes(route_of(0, 1, 0, 1)));
  network.apply(change_of("down", 1, one_way));
  EXPECT_FALSE(passes(route_of(0, 1, 0, 1)));
  EXPECT_FALSE(passes(route_of(0, 2, 0, 1)));  // made now
  EXPECT_TRUE(passes(route_of(1, 0, 1, 0)));   // the way back
  EXPECT_TRUE(passes(route_of(0, 1, 1, 0)));   // another pair of sockets
  network.apply(change_of("down", 0));
  EXPECT_TRUE(passes(route_of(0, 1, 0, 1)));
  EXPECT_TRUE(passes(route_of(0, 3, 0, 1)));
}

TEST(Network, apply__direction_of_shared_links) {
  NetworkOptions options;
  options.parallel_links = 1;
  options.is_shared = true;
  Network network({}, options, 1, 1);
  LinkSelector upwards;
  upwards.from = Rank{0};
  upwards.to = Rank{1};
  network.apply(change_of("down", 1, upwards));
  EXPECT_FALSE(cross(network, {}, route_of(2, 5)));
  EXPECT_TRUE(cross(network, {}, route_of(5, 2)));
}

TEST(Network, apply__steps_lead_to_the_value) {
  Network network({}, {}, 1, 1);
  Link& wire = network.wire(route_of(0, 1));
  std::vector<double> seen;
  for (uint32_t left = 4; left >= 1; --left) {
    LinkChange change = change_of("latency_us", 90);
    change.steps_left = left;
    network.apply(change);
    seen.push_back(find_link_knob("latency_us")->read(wire.options()));
  }
  EXPECT_EQ(seen, (std::vector<double>{60, 70, 80, 90}));
  EXPECT_EQ(network.wire(route_of(0, 2)).options().latency, Duration::micros(90));
}

TEST(Network, heal__leaves_rate_and_latency_and_no_fault) {
  LinkOptions faulty = slow_link();
  faulty.loss = faulty.duplicate = faulty.corrupt = 1;
  faulty.bad_begin = 1;
  faulty.mtu_bytes = 100;
  Network network(faulty, {}, 1, 1);
  Link& wire = network.wire(route_of(0, 1));
  network.apply(change_of("mtu", 9'000));
  EXPECT_FALSE(cross(network, {}, route_of(0, 1)));  // lost, in a burst that goes on
  network.apply(change_of("rate_mbit", 1));
  network.apply(change_of("down", 1));
  network.heal();
  const Instant later = Instant() + Duration::millis(5);
  EXPECT_EQ(cross(network, later, route_of(0, 1)), later + Duration::micros(1'010));
  EXPECT_EQ(cross(network, later, route_of(0, 2)), later + Duration::micros(1'010));
  EXPECT_EQ(wire.options().duplicate, 0);
}

TEST(Network, apply__ports) {
  NetworkOptions options;
  options.receiver_port = slow_link();
  Network network({}, options, 1, 1);
  LinkSelector port;
  port.hop = Hop::kReceiverPort;
  port.to = Rank{1};
  network.apply(change_of("down", 1, port));
  EXPECT_FALSE(cross(network, {}, route_of(0, 1)));
  EXPECT_TRUE(cross(network, {}, route_of(0, 2)));
}

}  // namespace
}  // namespace securefabric::sim
