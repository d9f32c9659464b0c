// Two endpoints wired back to back in memory and driven through virtual time, as net/ and sim/
// drive them; and a rogue third rank that holds valid keys and says whatever a test wants.
//
// Free of GoogleTest, so that the fuzz targets can use it: what must never happen is an SF_CHECK.
#pragma once

#include <algorithm>
#include <array>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "base/check.h"
#include "crypto/key_schedule.h"
#include "transport/endpoint.h"
#include "wire/header.h"

namespace securefabric::transport {

using ByteVector = std::vector<uint8_t>;

// Checks what FragmentSink promises: inside the message, aligned, each byte once.
class BufferSink : public FragmentSink {
 public:
  explicit BufferSink(size_t length) : bytes_(length), is_placed_(length) {}

  void place(uint64_t offset, base::Bytes bytes) override {
    const uint64_t end = offset + bytes.size();
    SF_CHECK(end <= bytes_.size());
    SF_CHECK(offset % kFragmentAlignment == 0);
    SF_CHECK(end % kFragmentAlignment == 0 || end == bytes_.size());
    for (size_t i = 0; i < bytes.size(); ++i) {
      SF_CHECK(!is_placed_[offset + i]);
      is_placed_[offset + i] = true;
      bytes_[offset + i] = bytes[i];
    }
    placed_ += bytes.size();
  }

  const ByteVector& bytes() const { return bytes_; }
  uint64_t placed() const { return placed_; }

 private:
  ByteVector bytes_;             // of the message
  std::vector<bool> is_placed_;  // one per byte
  uint64_t placed_ = 0;          // bytes placed so far
};

// Matches by (peer, key); what finds no receive is held and listed.
class TestMatcher : public ReceiveMatcher {
 public:
  struct Held {
    base::Rank peer;
    uint64_t message_id = 0;
    wire::MessageKey key;
    uint64_t length = 0;
    bool has_signature = false;
    bool operator==(const Held&) const = default;
  };

  void post(base::Rank peer, const wire::MessageKey& key, const PostedReceive& receive) {
    posted[{peer, key}] = receive;
  }

  Match match(base::Rank peer, uint64_t message_id, const wire::MessageKey& key, uint64_t length,
              const wire::Signature* signature) override {
    if (dead_groups.contains(key.group)) return {Match::Verdict::kDiscard, {}};
    const auto at = posted.find({peer, key});
    if (at != posted.end()) {
      const PostedReceive receive = at->second;
      posted.erase(at);
      return {Match::Verdict::kPosted, receive};
    }
    held.push_back({peer, message_id, key, length, signature != nullptr});
    return {Match::Verdict::kHold, {}};
  }

  std::map<std::pair<base::Rank, wire::MessageKey>, PostedReceive> posted;  // not matched yet
  std::vector<Held> held;          // every call that was answered with kHold
  std::set<uint64_t> dead_groups;  // answered with kDiscard
};

// A datagram on its way.
struct Datagram {
  base::Instant at;    // when it arrives
  size_t from = 0;     // node
  size_t to = 0;       // node
  uint8_t socket = 0;  // of the receiver
  bool is_marked_ce = false;
  ByteVector bytes;
};

struct PairOptions {
  size_t sockets = 2;                                     // per node
  size_t paths = 4;                                       // per peer
  size_t datagram_bytes = kDatagramBytesJumbo;            // largest, of every node
  size_t burst_segments = kBurstSegmentsMax;              // per Transmit
  unsigned generation_bits = 22;                          // see EndpointConfig
  base::Duration latency = base::Duration::micros(50);    // one way
  base::Duration join_timeout = kJoinTimeoutDefault;      // see EndpointConfig
  base::Duration death_timeout = kDeathTimeoutDefault;    // see EndpointConfig
  base::Duration heartbeat = kHeartbeatDefault;           // see EndpointConfig
  uint64_t receive_budget_bytes = kReceiveBudgetDefault;  // see EndpointConfig
  EpochLimits epoch_limits;                               // see EndpointConfig
  // Of each node's sockets; IPv4 where nothing is said.
  std::array<std::vector<base::AddressFamily>, 2> families = {};
};

class EndpointPair {
 public:
  static constexpr uint32_t kWorldSize = 3;
  static constexpr size_t kRogue = 2;  // rank and node of the rogue

  struct Node {
    TestMatcher matcher;                 // outlives the endpoint
    std::unique_ptr<Endpoint> endpoint;  // null for the rogue
    PeerDescription description;         // its roster entry
    std::vector<Event> events;           // everything reported, but PeerWanted that was answered
    size_t lookups = 0;                  // PeerWanted events
    std::array<size_t, 3> lookups_of{};  // the same by rank
    bool is_paused = false;              // takes no turns and loses what arrives
    bool is_busy = false;                // takes no turns; what arrives waits
    std::deque<Datagram> waiting;        // while it was busy
  };

  explicit EndpointPair(PairOptions options = {}) : options_(options) {
    for (uint32_t rank = 0; rank < kWorldSize; ++rank) describe(rank);
    for (uint32_t rank = 0; rank < kRogue; ++rank) start(rank);
  }

  Node& node(size_t index) { return nodes_[index]; }
  Endpoint& endpoint(size_t index) { return *nodes_[index].endpoint; }
  base::Instant now() const { return now_; }
  static base::Rank rank(size_t index) { return base::Rank{static_cast<uint32_t>(index)}; }

  // Sees every datagram when it is sent and may change it; false drops it.
  std::function<bool(Datagram&)> filter;
  // Answers PeerWanted with the roster entry, as the collective room would.
  bool answers_lookups = true;
  // What was sent to the rogue.
  std::vector<ByteVector> rogue_inbox;
  // Every burst that was sent, in order.
  struct Burst {
    size_t from = 0;           // node
    size_t segment_bytes = 0;  // as in Transmit
    size_t bytes = 0;          // of all segments
  };
  std::vector<Burst> bursts;
  size_t bursts_of(size_t from) const {
    return static_cast<size_t>(std::count_if(
        bursts.begin(), bursts.end(), [from](const Burst& burst) { return burst.from == from; }));
  }

  // Both ends need each other and wait until every path is active and carries full datagrams.
  bool join() {
    endpoint(0).require_peer(rank(1), now_);
    endpoint(1).require_peer(rank(0), now_);
    return run_until([this] { return is_ready(0, 1) && is_ready(1, 0); },
                     base::Duration::seconds(2));
  }
  // Every path is active.
  bool is_joined() {
    return active_paths(0, 1) >= path_count() && active_paths(1, 0) >= path_count();
  }
  bool is_ready(size_t from, size_t to) {
    const size_t largest =
        std::min(options_.datagram_bytes, nodes_[to].description.datagram_bytes_max);
    const auto reports = paths(from, to);
    const auto carries_full = [largest](const PathReport& path) {
      return path.mtu_bytes == largest;
    };
    return active_paths(from, to) >= path_count() &&
           std::all_of(reports.begin(), reports.end(), carries_full);
  }
  size_t path_count() const {
    return std::min(options_.paths, options_.sockets * options_.sockets);
  }

  size_t active_paths(size_t from, size_t to) {
    size_t count = 0;
    for (const PathReport& path : paths(from, to)) {
      count += path.state == PathState::kActive || path.state == PathState::kAvoided;
    }
    return count;
  }
  std::vector<PathReport> paths(size_t from, size_t to) {
    for (const auto& [peer, reports] : endpoint(from).paths()) {
      if (peer == rank(to)) return reports;
    }
    return {};
  }

  // Puts a datagram on the wire by hand; it arrives after `delay`.
  void inject(size_t from, size_t to, uint8_t socket, ByteVector bytes,
              base::Duration delay = base::Duration()) {
    in_flight_.emplace(std::pair{now_ + delay, next_sequence_++},
                       Datagram{now_ + delay, from, to, socket, false, std::move(bytes)});
  }

  void run_for(base::Duration duration) {
    const base::Instant end = now_ + duration;
    turn();  // what was posted since the last one
    while (step(end)) {
    }
    turn();
  }

  // True as soon as `done()`; false when `limit` has passed.
  template <typename Done>
  bool run_until(Done&& done, base::Duration limit) {
    const base::Instant end = now_ + limit;
    turn();
    while (!done()) {
      if (!step(end)) return done();
    }
    return true;
  }

  // One turn of every driver at the current time, in the order that endpoint.h asks for.
  void turn() {
    deliver_due();
    for (size_t i = 0; i < kRogue; ++i) {
      if (!takes_turns(i)) continue;
      endpoint(i).handle_timeout(now_);
      take_events(i);
      send_all(i);
    }
  }

  template <typename EventT>
  std::vector<EventT> events_of(size_t index) const {
    std::vector<EventT> found;
    for (const Event& event : nodes_[index].events) {
      if (const auto* one = std::get_if<EventT>(&event)) found.push_back(*one);
    }
    return found;
  }

  uint64_t all_drops(size_t index) {
    const DropCounters& d = endpoint(index).drops();
    return d.too_short + d.bad_version + d.unknown_spi + d.path_mismatch + d.stale_generation +
           d.future_generation + d.replay_duplicate + d.replay_too_old + d.auth_failed +
           d.packet_limit + d.unconfirmed + d.malformed + d.peer_closed;
  }

  static crypto::SecretBuffer secret(uint8_t fill) {
    ByteVector bytes(32, fill);
    return crypto::SecretBuffer::copy_and_wipe(bytes);
  }
  static crypto::SecretBuffer private_key(uint32_t rank) {
    return secret(static_cast<uint8_t>(0x40 + rank));
  }
  // What a node draws as its challenge number `count`.
  static uint64_t challenge(size_t node, uint64_t count) {
    return (count + 1) * 0x9E3779B97F4A7C15u + node;
  }
  static crypto::SecretBuffer job_secret() { return secret(0x77); }
  static base::SocketAddress address(size_t node, size_t socket) {
    return base::SocketAddress::ipv4(
        {10, 0, static_cast<uint8_t>(node), static_cast<uint8_t>(socket)}, 4000);
  }
  static base::SocketAddress ipv6_address(size_t node, size_t socket) {
    base::SocketAddress::Ipv6Bytes bytes{0xFD};
    bytes[14] = static_cast<uint8_t>(node);
    bytes[15] = static_cast<uint8_t>(socket);
    return base::SocketAddress::ipv6(bytes, 4000);
  }
  static const crypto::AeadProvider& aead() {
    return *crypto::find_provider(crypto::Suite::kAes256Gcm).value();
  }
  const PairOptions& options() const { return options_; }

 private:
  // A driver that is called again and again at one time without an end in sight is spinning.
  static constexpr int kTurnsPerInstantMax = 50;

  base::AddressFamily family_of(size_t index, size_t socket) const {
    const bool is_told = index < kRogue && socket < options_.families[index].size();
    return is_told ? options_.families[index][socket] : base::AddressFamily::kIpv4;
  }

  void describe(uint32_t index) {
    PeerDescription& peer = nodes_[index].description;
    peer.rank = base::Rank{index};
    peer.boot_id.fill(static_cast<uint8_t>(index + 1));
    const auto key_pair = crypto::KeyPair::from_private(private_key(index));
    peer.public_key = base::to_vector(key_pair.public_key());
    peer.spi_base = base::Spi{0x1000u * (index + 1)};
    for (size_t s = 0; s < options_.sockets; ++s) {
      const bool is_ipv6 = family_of(index, s) == base::AddressFamily::kIpv6;
      peer.addresses.push_back(is_ipv6 ? ipv6_address(index, s) : address(index, s));
    }
    peer.datagram_bytes_max = options_.datagram_bytes;
    peer.entry = base::to_vector(base::as_bytes("entry of rank " + std::to_string(index)));
  }

  void start(uint32_t index) {
    EndpointConfig config;
    config.rank = base::Rank{index};
    config.world_size = kWorldSize;
    config.aead = &aead();
    config.generation_bits = options_.generation_bits;
    config.private_key = private_key(index);
    config.draw_private_key = [index, count = 0u]() mutable {
      return private_key(kWorldSize * ++count + index);
    };
    config.draw_challenge = [index, count = uint64_t{0}]() mutable {
      return challenge(index, count++);
    };
    config.epoch_limits = options_.epoch_limits;
    config.job_secret = job_secret();
    config.spi_base = nodes_[index].description.spi_base;
    for (size_t s = 0; s < options_.sockets; ++s) config.sockets.push_back(family_of(index, s));
    config.paths_per_peer = options_.paths;
    config.datagram_bytes_max = options_.datagram_bytes;
    config.burst_segments_max = options_.burst_segments;
    config.random_seed = index + 1;
    config.join_timeout = options_.join_timeout;
    config.death_timeout = options_.death_timeout;
    config.heartbeat = options_.heartbeat;
    config.receive_budget_bytes = options_.receive_budget_bytes;
    Node& node = nodes_[index];
    node.endpoint = std::make_unique<Endpoint>(std::move(config), node.matcher);
    node.endpoint->set_own_entry(node.description.entry);
  }

  // Advances to the next thing that happens, at most to `end`, and runs a turn there; false when
  // nothing happens until then.
  bool step(base::Instant end) {
    base::Instant next =
        in_flight_.empty() ? base::Instant::never() : in_flight_.begin()->first.first;
    for (size_t i = 0; i < kRogue; ++i) {
      if (takes_turns(i)) next = base::earlier(next, endpoint(i).poll_timeout());
    }
    if (next > end) {
      now_ = end;
      turns_here_ = 0;
      return false;
    }
    turns_here_ = next > now_ ? 0 : turns_here_ + 1;
    SF_CHECK_MSG(turns_here_ < kTurnsPerInstantMax, "an endpoint spins");
    now_ = base::Instant::from_nanos(std::max(now_.nanos(), next.nanos()));
    turn();
    return true;
  }

  bool takes_turns(size_t index) const {
    return !nodes_[index].is_paused && !nodes_[index].is_busy;
  }

  void deliver_due() {
    for (size_t i = 0; i < kRogue; ++i) {
      while (!nodes_[i].is_busy && !nodes_[i].waiting.empty()) {
        const Datagram datagram = std::move(nodes_[i].waiting.front());
        nodes_[i].waiting.pop_front();
        endpoint(i).handle_datagram(now_, datagram.socket, datagram.is_marked_ce, datagram.bytes);
      }
    }
    while (!in_flight_.empty() && in_flight_.begin()->first.first <= now_) {
      const Datagram datagram = std::move(in_flight_.begin()->second);
      in_flight_.erase(in_flight_.begin());
      if (datagram.to >= kRogue) {
        rogue_inbox.push_back(datagram.bytes);
      } else if (nodes_[datagram.to].is_busy) {
        nodes_[datagram.to].waiting.push_back(datagram);
      } else if (!nodes_[datagram.to].is_paused) {
        endpoint(datagram.to)
            .handle_datagram(now_, datagram.socket, datagram.is_marked_ce, datagram.bytes);
      }
    }
  }

  void take_events(size_t index) {
    while (auto event = endpoint(index).poll_event()) {
      if (const auto* wanted = std::get_if<PeerWanted>(&*event)) {
        ++nodes_[index].lookups;
        ++nodes_[index].lookups_of[wanted->peer.value];
        if (!answers_lookups) continue;
        const PeerDescription& entry = nodes_[wanted->peer.value].description;
        if (wanted->is_hint) {
          (void)endpoint(index).learn_peer(entry, now_);
        } else {
          (void)endpoint(index).install_peer(entry, now_).ok();
        }
      } else {
        nodes_[index].events.push_back(std::move(*event));
      }
    }
  }

  void send_all(size_t index) {
    Transmit transmit;
    while (endpoint(index).poll_transmit(now_, transmit)) {
      check_burst(transmit);
      bursts.push_back({index, transmit.segment_bytes, transmit.bytes.size()});
      for (size_t at = 0; at < transmit.bytes.size(); at += transmit.segment_bytes) {
        const size_t size = std::min(transmit.segment_bytes, transmit.bytes.size() - at);
        send(index, transmit, transmit.bytes.subspan(at, size));
      }
    }
  }

  void check_burst(const Transmit& transmit) const {
    SF_CHECK(transmit.segment_bytes > 0 && !transmit.bytes.empty());
    SF_CHECK(transmit.segment_bytes <= options_.datagram_bytes);
    SF_CHECK(transmit.bytes.size() <= kBurstBytesMax);
    const size_t segments =
        (transmit.bytes.size() + transmit.segment_bytes - 1) / transmit.segment_bytes;
    SF_CHECK(segments <= options_.burst_segments);
    SF_CHECK(transmit.socket < options_.sockets);
  }

  void send(size_t from, const Transmit& transmit, base::Bytes bytes) {
    const base::Bytes last = transmit.to.ip_bytes().last(2);  // see address()
    Datagram datagram{now_ + options_.latency, from, last[0], last[1], false,
                      base::to_vector(bytes)};
    SF_CHECK(transmit.to.family() == family_of(from, transmit.socket));
    wire::Header header;
    SF_CHECK(wire::decode_header(datagram.bytes, header) == wire::HeaderStatus::kOk);
    SF_CHECK(header.path == base::PathId::from_sockets(transmit.socket, datagram.socket));
    if (filter && !filter(datagram)) return;
    in_flight_.emplace(std::pair{datagram.at, next_sequence_++}, std::move(datagram));
  }

  PairOptions options_;
  std::array<Node, kWorldSize> nodes_;
  base::Instant now_ = base::Instant::from_nanos(1'000'000'000);
  // By arrival, then by order of sending.
  std::map<std::pair<base::Instant, uint64_t>, Datagram> in_flight_;
  uint64_t next_sequence_ = 0;  // of in_flight_
  int turns_here_ = 0;          // turns since time moved
};

// The third rank: it has joined honestly and breaks the protocol from then on. What it says to a
// node is sealed with the right keys.
class RoguePeer {
 public:
  RoguePeer(EndpointPair& pair, size_t victim) : pair_(pair), victim_(victim) {
    const auto own = crypto::KeyPair::from_private(EndpointPair::private_key(EndpointPair::kRogue));
    const PeerDescription& me = pair.node(EndpointPair::kRogue).description;
    const PeerDescription& peer = pair.node(victim).description;
    const auto job = EndpointPair::job_secret();
    auto link = crypto::derive_link_secret(own, peer.public_key, me.entry, peer.entry,
                                           /*own_is_low=*/false, /*engine=*/0, job.view());
    const base::Bytes secret = link.value().view();
    outward_ = crypto::derive_direction_secret(secret, me.rank, peer.rank, 0);
    inward_ = crypto::derive_direction_secret(secret, peer.rank, me.rank, 0);
    spi_ = base::Spi{peer.spi_base.value + me.rank.value};
  }

  // The victim knows us from its roster.
  void introduce() {
    const auto& me = pair_.node(EndpointPair::kRogue).description;
    SF_CHECK(pair_.endpoint(victim_).install_peer(me, pair_.now()).ok());
  }

  // One packet with this plaintext, on the path between our socket and the victim's.
  ByteVector seal(base::Bytes plaintext, uint8_t own_socket = 0, uint8_t their_socket = 0) {
    const auto path = base::PathId::from_sockets(own_socket, their_socket);
    crypto::PathSealer& sealer = sealer_of(path);
    ByteVector datagram(wire::kHeaderBytes + plaintext.size() + crypto::kAuthTagBytes);
    wire::encode_header({path, spi_, sealer.next_packet_number()}, datagram);
    const base::MutableBytes out(datagram);
    SF_CHECK(sealer.seal(out.first(wire::kHeaderBytes), std::span(&plaintext, 1),
                         out.subspan(wire::kHeaderBytes)));
    return datagram;
  }

  // Seals and hands over at once.
  void say(base::Bytes plaintext, uint8_t own_socket = 0, uint8_t their_socket = 0) {
    pair_.inject(EndpointPair::kRogue, victim_, their_socket,
                 seal(plaintext, own_socket, their_socket));
    pair_.turn();
  }
  template <typename FrameT>
  void say_frame(const FrameT& frame, uint8_t own_socket = 0, uint8_t their_socket = 0) {
    ByteVector bytes(encoded_bytes(frame));
    base::ByteWriter out(bytes);
    encode(frame, out);
    say(bytes, own_socket, their_socket);
  }
  void say_data(const wire::DataFrame& frame, uint8_t own_socket = 0, uint8_t their_socket = 0) {
    ByteVector bytes(encoded_bytes(frame) + frame.bytes.size());
    base::ByteWriter out(bytes);
    encode_data_header(frame, out);
    out.bytes(frame.bytes);
    say(bytes, own_socket, their_socket);
  }

  // Opens a datagram of the victim; empty when it does not verify.
  ByteVector open(base::Bytes datagram) {
    wire::Header header;
    if (wire::decode_header(datagram, header) != wire::HeaderStatus::kOk) return {};
    ByteVector plaintext(datagram.size() - wire::kHeaderBytes - crypto::kAuthTagBytes);
    const auto status =
        opener_of(header.path)
            .open(header.epoch_bit, header.packet_number, datagram.first(wire::kHeaderBytes),
                  datagram.subspan(wire::kHeaderBytes), plaintext);
    return status == crypto::OpenStatus::kOk ? plaintext : ByteVector{};
  }

 private:
  crypto::PathSealer& sealer_of(base::PathId path) {
    const auto at = sealers_.find(path);
    if (at != sealers_.end()) return at->second;
    crypto::PathSealer sealer(EndpointPair::aead(),
                              crypto::derive_path_secret(outward_.view(), path), path,
                              pair_.options().generation_bits);
    return sealers_.emplace(path, std::move(sealer)).first->second;
  }
  crypto::PathOpener& opener_of(base::PathId path) {
    const auto at = openers_.find(path);
    if (at != openers_.end()) return at->second;
    crypto::PathOpener opener(EndpointPair::aead(),
                              crypto::derive_path_secret(inward_.view(), path), path,
                              pair_.options().generation_bits);
    return openers_.emplace(path, std::move(opener)).first->second;
  }

  EndpointPair& pair_;
  size_t victim_;                 // node
  crypto::SecretBuffer outward_;  // direction secret, from us
  crypto::SecretBuffer inward_;   // direction secret, to us
  base::Spi spi_;                 // what the victim listens to us on
  std::map<base::PathId, crypto::PathSealer> sealers_;
  std::map<base::PathId, crypto::PathOpener> openers_;
};

// Bytes that differ at every offset, so that a misplaced fragment shows.
inline ByteVector pattern(size_t size, uint64_t seed = 1) {
  ByteVector bytes(size);
  base::Random random(seed);
  random.fill(bytes);
  return bytes;
}

inline wire::MessageKey collective_key(uint64_t operation, uint32_t slot = 0, uint64_t group = 7) {
  return {wire::Channel::kCollective, group, operation, slot};
}
inline wire::MessageKey point_to_point_key(uint64_t operation, uint32_t tag = 0,
                                           uint64_t group = 7) {
  return {wire::Channel::kPointToPoint, group, operation, tag};
}
inline wire::Signature signature(uint64_t count = 1) {
  return {1, 2, 3, 0, count};
}

}  // namespace securefabric::transport
