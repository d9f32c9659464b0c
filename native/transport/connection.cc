#include "transport/connection.h"

#include <algorithm>
#include <cstdio>

#include "crypto/key_schedule.h"

namespace securefabric::transport {

using base::Duration;
using base::Error;
using base::ErrorCode;
using base::Instant;
using base::PathId;
using base::Status;

Connection::Connection(Shared shared, base::Rank peer, Instant now)
    : shared_(shared),
      peer_(peer),
      epochs_(shared.config.rank, peer, epoch_limits(shared.config.epoch_limits, shared.random)),
      scheduler_(shared.config.sprays_blind),
      receives_(peer, shared.matcher, shared.traffic),
      last_heard_at_(now),
      last_sent_at_(now),
      plaintext_(shared.scratch.plaintext),
      bitmap_(shared.scratch.bitmap),
      settled_(shared.scratch.settled) {}

Status Connection::learn(const PeerDescription& peer, base::Bytes own_entry,
                         const crypto::KeyPair& key_pair, Instant now) {
  SF_CHECK(state_ == ConnectionState::kResolving);
  const EndpointConfig& config = shared_.config;
  if (peer.addresses.empty() || peer.addresses.size() > kSocketsMax ||
      peer.datagram_bytes_max < kDatagramBytesMin) {
    return Error{ErrorCode::kConfig,
                 "has published an unusable entry: it names no address, too "
                 "many, or datagrams that are too small"};
  }
  auto link = crypto::derive_link_secret(key_pair, peer.public_key, own_entry, peer.entry,
                                         /*own_is_low=*/config.rank < peer_, config.engine,
                                         config.job_secret.view(),
                                         peer.kem_secret ? peer.kem_secret->view() : base::Bytes());
  if (!link) return Error{ErrorCode::kAuth, "cannot be linked: " + link.error().message};
  peer_info_ = peer;
  peer_info_.kem_secret.reset();
  epochs_.install(std::move(link).value(), now);
  peer_spi_ = base::Spi{peer.spi_base.value + config.rank.value};
  datagram_bytes_ = std::min(config.datagram_bytes_max, peer.datagram_bytes_max);
  state_ = ConnectionState::kKnown;
  return base::ok_status();
}

Status Connection::link(Instant now) {
  SF_CHECK(state_ == ConnectionState::kKnown);
  state_ = ConnectionState::kConfirming;
  shared_.pool.add(peer_);
  shared_.shares_changed = true;
  open_sending_paths(kPathsOpenedFirst, now);
  if (!sending_.empty()) return base::ok_status();
  report_failure(ErrorCode::kConfig,
                 "cannot be reached: of the two ranks, one has only IPv4 addresses and the other "
                 "only IPv6 ones; choose interfaces with addresses of the same family "
                 "(SECUREFABRIC_SOCKET_IFNAME)");
  return *error_;
}

Status Connection::install(const PeerDescription& peer, base::Bytes own_entry,
                           const crypto::KeyPair& key_pair, Instant now) {
  const Status status = learn(peer, own_entry, key_pair, now);
  if (status) return link(now);
  peer_info_.addresses = peer.addresses;  // for the message
  report_failure(status.error().code, status.error().message);
  return *error_;
}

// Opens up to `count` more. The pairs are enumerated from the lower rank's side, so that both ends
// use the same ones and each path has its way back: (low i, high i + d) for d = 0, 1, ... A socket
// reaches only addresses of its own family.
void Connection::open_sending_paths(size_t count, Instant now) {
  const EndpointConfig& config = shared_.config;
  const bool own_is_low = config.rank < peer_;
  const size_t own_count = config.sockets.size();
  const size_t peer_count = peer_info_.addresses.size();
  const size_t low_count = own_is_low ? own_count : peer_count;
  const size_t high_count = own_is_low ? peer_count : own_count;
  for (size_t distance = 0; distance < high_count; ++distance) {
    for (size_t low = 0; low < low_count; ++low) {
      if (count == 0 || sending_.size() >= config.paths_per_peer) return;
      const size_t high = (low + distance) % high_count;
      const auto own = static_cast<uint8_t>(own_is_low ? low : high);
      const auto other = static_cast<uint8_t>(own_is_low ? high : low);
      const PathId id = PathId::from_sockets(own, other);
      const bool is_mixed = config.sockets[own] != peer_info_.addresses[other].family();
      if (is_mixed || sending_path(id) != nullptr) continue;
      open_sending_path(id, now);
      --count;
    }
  }
}

SendingPath& Connection::open_sending_path(PathId id, Instant now) {
  const EndpointConfig& config = shared_.config;
  crypto::PathSealer sealer(*config.aead, crypto::derive_path_secret(epochs_.send_secret(), id), id,
                            config.generation_bits);
  sending_.push_back(std::make_unique<SendingPath>(id, peer_info_.addresses[id.receiver_socket()],
                                                   std::move(sealer), datagram_bytes_,
                                                   config.heeds_delay));
  SendingPath& path = *sending_.back();
  const Duration base = least_base_delay();
  if (state_ == ConnectionState::kOpen && base < Duration::forever()) {
    path.congestion.assume_base(base, now);
  }
  path.next_challenge_at = now;
  path.challenge_interval = kProbeIntervalMin;
  return path;
}

// Forever when no path has a sample.
Duration Connection::least_base_delay() const {
  Duration least = Duration::forever();
  for (const auto& path : sending_) {
    const Duration base = path->congestion.base_delay();
    if (base > Duration()) least = base::shorter(least, base);
  }
  return least;
}

ReceivingPath* Connection::receiving_path(PathId id) {
  const auto at = receiving_.find(id);
  return at == receiving_.end() ? nullptr : at->second.get();
}

// The caller has checked the receiver's socket.
bool Connection::may_receive_on(PathId id) const {
  return id.sender_socket() < peer_info_.addresses.size() && receiving_.size() < kPathsPerPeerMax;
}

SendingPath* Connection::sending_path(PathId id) {
  for (const auto& path : sending_) {
    if (path->id == id) return path.get();
  }
  return nullptr;
}

void Connection::require(Instant now) {
  if (!required_at_.is_never()) return;
  required_at_ = now;
  if (is_passive()) (void)link(now);
  for (const auto& path : sending_) {
    if (!path->has_answered()) path->next_challenge_at = now;
  }
}

void Connection::fail(Error error) {
  if (!is_usable()) return;
  state_ = ConnectionState::kFailed;
  shared_.pool.remove(peer_);
  shared_.shares_changed = true;
  sends_.clear();
  receives_.clear();
  control_.clear();
  grants_waiting_.clear();
  wipe_keys();
  error_ = error;
  shared_.events.push_back(PeerFailed{peer_, std::move(error)});
}

void Connection::report_failure(ErrorCode code, const std::string& what) {
  fail(Error{code, describe() + " " + what});
}

std::string Connection::describe() const {
  std::string text = "rank " + std::to_string(peer_.value);
  if (!peer_info_.addresses.empty()) text += " (" + peer_info_.addresses.front().to_text() + ")";
  return text;
}

std::string in_seconds(Duration duration) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f s", duration.seconds());
  return text;
}

std::string Connection::join_failure(Instant now) const {
  const std::string waited = in_seconds(now - required_at_);
  if (state_ == ConnectionState::kResolving) {
    return "did not join: it has published no roster entry for " + waited +
           " (with post-quantum keys: or no record for this rank). Check that this rank was "
           "started, that it has not failed, and that it uses the same "
           "rendezvous (MASTER_ADDR, MASTER_PORT) and backend";
  }
  const std::string boot = "(boot " + base::to_hex(peer_info_.boot_id).substr(0, 8) + ")";
  if (epochs_.forgeries() > 0) {
    return "did not join: packets arrive from it, but none of them verifies (waited " + waited +
           "). Most likely it was started with another job key, or its roster entry " + boot +
           " is left over from an earlier run, or the store shows it another entry of ours; give "
           "every rank the same key file and restart the job";
  }
  const auto of_loopback = [](const base::SocketAddress& address) { return address.is_loopback(); };
  if (std::ranges::all_of(peer_info_.addresses, of_loopback)) {
    return "did not join: its roster entry " + boot +
           " is valid, but all its addresses are loopback ones, and it answered on none of them "
           "for " +
           waited +
           ". If it is on another host, it took all ranks to be on its own, because of MASTER_ADDR "
           "or LOCAL_WORLD_SIZE there: set MASTER_ADDR to an address of rank 0 that all hosts "
           "reach, on every rank. If it is on this one, the entry is left over from an earlier "
           "run, "
           "or the rank has stopped" +
           send_errors();
  }
  const std::string failure = "did not join: its roster entry " + boot +
                              " is valid but it answered on none of " +
                              std::to_string(sending_.size()) + " paths for " + waited;
  const auto was_refused = [](const auto& path) { return !path->send_error.empty(); };
  if (std::ranges::all_of(sending_, was_refused)) return failure + send_errors();
  return failure + send_errors() +
         ". Most likely a firewall drops UDP between the hosts, or the entry is left over from an "
         "earlier run; choose the network with SECUREFABRIC_SOCKET_IFNAME";
}

// What this host said when it was to send to the peer; nothing if it took everything.
std::string Connection::send_errors() const {
  size_t refused = 0;
  const std::string* first = nullptr;
  for (const auto& path : sending_) {
    if (path->send_error.empty()) continue;
    ++refused;
    if (first == nullptr) first = &path->send_error;
  }
  if (first == nullptr) return "";
  return ". This host itself refused to send on " + std::to_string(refused) + " of " +
         std::to_string(sending_.size()) + " paths: " + *first;
}

void Connection::check_liveness(Instant now) {
  const EndpointConfig& config = shared_.config;
  if (state_ == ConnectionState::kOpen) {
    const Duration silence = now - last_heard_at_;
    if (silence >= config.death_timeout) {
      report_failure(ErrorCode::kPeerLost,
                     "is lost: it answered nothing that was sent to it in the last " +
                         in_seconds(silence) +
                         " (its process died or its host is unreachable; it stays "
                         "lost: restart all ranks)" +
                         send_errors());
      return;
    }
    if (now - last_sent_at_ >= heartbeat(now)) {
      last_sent_at_ = now;
      for (const auto& path : sending_) {
        if (path->is_active()) path->wants_ping = true;
      }
    }
    return;
  }
  if (!required_at_.is_never() && now - required_at_ >= config.join_timeout) {
    report_failure(ErrorCode::kPeerLost, join_failure(now));
  }
}

// Where most packets are lost, an answer takes several tries: a peer that has not answered for a
// while is asked more often.
Duration Connection::heartbeat(Instant now) const {
  const Duration usual = shared_.config.heartbeat;
  return now - last_heard_at_ < usual * 2 ? usual : usual / kHeartbeatHaste;
}

void Connection::handle_timeout(Instant now) {
  if (!is_usable()) return;
  for (const auto& path : sending_) {
    settled_.clear();
    path->sent.detect_lost(now, path->rtt.loss_delay(), settled_);
    settle(*path, settled_, now);
    if (path->probe_deadline() <= now) on_probe_timer(*path, now);
  }
  retire_epoch_if_due(now);
  begin_epoch_if_due(now);
  fail_epoch_if_overdue(now);
  check_liveness(now);
}

Instant Connection::deadline(Instant now) const {
  if (!is_usable()) return Instant::never();
  Instant earliest = Instant::never();
  bool may_ack = false;
  for (const auto& path : sending_) {
    may_ack = may_ack || may_answer(*path);
    earliest = base::earlier(earliest, path->probe_deadline());
    earliest = base::earlier(earliest, path->sent.loss_time(path->rtt.loss_delay()));
    earliest = base::earlier(earliest, path->next_challenge_at);
    if (path->is_active()) earliest = base::earlier(earliest, path->mtu.deadline());
  }
  for (const auto& [id, path] : receiving_) {
    if (may_ack) earliest = base::earlier(earliest, path->acks.deadline());
  }
  const EndpointConfig& config = shared_.config;
  if (state_ == ConnectionState::kOpen) {
    if (has_payload()) earliest = base::earlier(earliest, scheduler_.room_at(sending_, now));
    earliest = base::earlier(earliest, epochs_.deadline(epoch_linger(), epoch_patience()));
    earliest = base::earlier(earliest, last_sent_at_ + heartbeat(now));
    earliest = base::earlier(earliest, last_heard_at_ + config.death_timeout);
  } else if (!required_at_.is_never()) {
    earliest = base::earlier(earliest, required_at_ + config.join_timeout);
  }
  // Whatever is due already is served by the next turn, each of which moves the timer it serves.
  return earliest <= now ? now : earliest;
}

void Connection::attach_receive(uint64_t message_id, const PostedReceive& receive, Instant now) {
  InboundMessages::Effects effects;
  receives_.attach(message_id, receive, effects);
  apply(effects, now);
}

void Connection::withdraw_group(uint64_t group) {
  const auto is_of_group = [group](const auto& grant) { return grant.first.group == group; };
  std::erase_if(grants_waiting_, is_of_group);
  sends_.withdraw_group(group);
  receives_.withdraw_group(group);
  update_credit();
}

void Connection::post_pull(const wire::MessageKey& key, uint64_t bytes) {
  if (control_.size() >= kControlFramesBusy) return;  // the engine asks again
  queue_control(wire::GrantFrame{key, bytes, next_grant_id_++, /*is_pull=*/true});
}

void Connection::post_grant(const wire::MessageKey& key, uint64_t bytes, Instant now) {
  grants_waiting_.emplace_back(key, bytes);
  serve_grants(now);
}

void Connection::serve_grants(Instant now) {
  while (!grants_waiting_.empty() && receives_.granted() < kGrantsOutstandingMax && is_usable()) {
    const auto [key, bytes] = grants_waiting_.front();
    grants_waiting_.pop_front();
    receives_.on_granted_unasked(key.group);
    send_grant(key, bytes, now);
  }
}

void Connection::send_grant(const wire::MessageKey& key, uint64_t bytes, Instant now) {
  if (shared_.pool.on_activity(peer_, now)) shared_.shares_changed = true;
  queue_control(wire::GrantFrame{key, bytes, next_grant_id_++, /*is_pull=*/false});
}

// A question that is not asked is asked again; who asks without end gets no answers without end.
void Connection::post_status(const wire::StatusFrame& status) {
  if (control_.size() < kControlFramesBusy) queue_control(status);
}

void Connection::post_abort(const wire::AbortFrame& abort) {
  SF_CHECK(abort.reason.size() <= wire::AbortFrame::kReasonBytesMax);
  queue_control(std::make_shared<const wire::AbortFrame>(abort));
}

void Connection::queue_control(ControlFrame frame) {
  if (control_.size() >= kControlFramesMax) {
    report_failure(ErrorCode::kLimit, "acknowledges nothing: too many frames wait for it");
    return;
  }
  control_.push_back(std::move(frame));
}

void Connection::post_goodbye() {
  if (state_ != ConnectionState::kOpen) return;
  // Acks that were lost cannot be asked for again, so the goodbye repeats them all.
  for (const auto& [id, path] : receiving_) path->acks.repeat();
  control_.push_back(wire::GoodbyeFrame{});
}

void Connection::drop_group(uint64_t group) {
  sends_.drop_group(group);
  receives_.drop_group(group);
  update_credit();
}

bool Connection::is_drained() const {
  if (!is_usable()) return true;
  // Whoever has reached this rank is owed a goodbye, which needs a path that is known to work.
  const bool is_reached = std::any_of(receiving_.begin(), receiving_.end(),
                                      [](const auto& path) { return path.second->is_confirmed; });
  if (state_ == ConnectionState::kConfirming && is_reached) return false;
  // An abort in flight may still be lost.
  const bool awaits_acks = std::any_of(sending_.begin(), sending_.end(), [](const auto& path) {
    return path->sent.has_eliciting_in_flight();
  });
  return sends_.is_drained() && control_.empty() && !awaits_acks;
}

PathReport Connection::report_of(const SendingPath& path, Instant now) const {
  PathReport report;
  report.id = path.id;
  report.to = path.to;
  report.state = path.state_at(now);
  report.is_in_use = path.is_in_use;
  report.srtt_us = static_cast<double>(path.rtt.srtt().nanos()) / 1e3;
  report.delay_us = static_cast<double>(path.rtt.delay().nanos()) / 1e3;
  report.window_bytes = path.congestion.window();
  report.in_flight_bytes = path.congestion.in_flight();
  report.mtu_bytes = path.mtu.mtu();
  report.packets_sealed = path.sealer.next_packet_number();
  report.packets_lost = path.packets_lost;
  report.message_bytes = path.message_bytes;
  report.epoch = epochs_.sending_epoch();
  return report;
}

std::vector<PathReport> Connection::paths(Instant now) const {
  std::vector<PathReport> reports;
  for (const auto& path : sending_) reports.push_back(report_of(*path, now));
  return reports;
}

std::optional<PathReport> Connection::path(PathId id, Instant now) const {
  for (const auto& path : sending_) {
    if (path->id == id) return report_of(*path, now);
  }
  return std::nullopt;
}

}  // namespace securefabric::transport
