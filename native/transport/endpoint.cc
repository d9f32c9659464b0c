#include "transport/endpoint.h"

#include "wire/header.h"

namespace securefabric::transport {

using base::Error;
using base::ErrorCode;
using base::Instant;
using base::Rank;
using base::Status;

namespace {

// After a hint that led to no entry, no other is followed for so long. Of those that lead to one
// there are as many as ranks.
constexpr base::Duration kHintInterval = base::Duration::millis(100);

crypto::KeyPair take_key_pair(EndpointConfig& config) {
  return crypto::KeyPair::from_private(std::move(config.private_key));
}

}  // namespace

Endpoint::Endpoint(EndpointConfig config, ReceiveMatcher& matcher)
    : config_(std::move(config)),
      key_pair_(take_key_pair(config_)),
      matcher_(matcher),
      random_(config_.random_seed),
      pool_(config_.receive_budget_bytes),
      burst_(kBurstBytesMax + kDatagramBytesMax) {
  SF_CHECK(config_.aead != nullptr);
  SF_CHECK(config_.draw_private_key != nullptr && config_.draw_challenge != nullptr);
  SF_CHECK(!config_.sockets.empty() && config_.sockets.size() <= kSocketsMax);
  SF_CHECK(config_.paths_per_peer >= 1 && config_.paths_per_peer <= kPathsPerPeerMax);
  SF_CHECK(config_.datagram_bytes_max >= kDatagramBytesMin &&
           config_.datagram_bytes_max <= kDatagramBytesMax);
}

void Endpoint::check_clock(Instant now) {
  SF_CHECK_MSG(now >= last_now_, "time ran backwards");
  if (now - last_now_ >= config_.heartbeat) excuse_silence(now);
  last_now_ = now;
}

// An open connection is due once per heartbeat at least. Who calls a heartbeat too late did not run
// meanwhile: it was stopped, or its machine was. It heard nobody, which says nothing about them.
void Endpoint::excuse_silence(Instant now) {
  const Instant due = std::max(poll_timeout(), last_now_);
  if (due >= now || now - due < config_.heartbeat) return;
  for (auto& [rank, peer] : peers_) peer.connection->excuse_silence(now - due);
}

void Endpoint::handle_datagram(Instant now, uint8_t socket, bool is_marked_ce, base::Bytes datagram,
                               base::Duration waited) {
  check_clock(now);
  wire::Header header;
  switch (wire::decode_header(datagram, header)) {
    case wire::HeaderStatus::kOk: break;
    case wire::HeaderStatus::kTooShort: ++drops_.too_short; return;
    case wire::HeaderStatus::kBadVersion: ++drops_.bad_version; return;
  }
  const Rank peer{header.spi.value - config_.spi_base.value};
  if (peer.value >= config_.world_size || peer == config_.rank) {
    ++drops_.unknown_spi;
    return;
  }
  if (header.path.receiver_socket() != socket) {
    ++drops_.path_mismatch;
    return;
  }
  Connection* connection = find(peer);
  if (connection == nullptr) {
    ++drops_.unknown_spi;
    return hint_at(peer);
  }
  connection->handle_packet(now, header, is_marked_ce, datagram, waited);
  mark_dirty(peer);
}

// Somebody uses the SPI that is reserved for `peer`. Perhaps it is the peer, waiting for us to
// fetch its entry; perhaps a stranger, who can cause look-ups and nothing more. The ranks take
// turns, so that he cannot keep the look-up of one away by naming others. No timer: who is honest
// tries again, and that follows the next hint.
void Endpoint::hint_at(Rank peer) {
  hinted_.insert(peer);
  follow_hints();
}

void Endpoint::follow_hints() {
  while (!hinted_.empty() && last_now_ >= next_hint_at_) {
    auto next = hinted_.upper_bound(last_hinted_);
    if (next == hinted_.end()) next = hinted_.begin();
    last_hinted_ = *next;
    hinted_.erase(next);
    if (find(last_hinted_) != nullptr) continue;  // known by now
    next_hint_at_ = last_now_ + kHintInterval;
    events_.push_back(PeerWanted{last_hinted_, /*is_hint=*/true});
  }
}

void Endpoint::handle_timeout(Instant now) {
  check_clock(now);
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    const Rank rank = deadlines_.begin()->second;
    Peer& peer = peers_.at(rank);
    set_deadline(rank, peer, Instant::never());
    peer.connection->handle_timeout(now);
    mark_dirty(rank);
  }
}

Connection* Endpoint::find(Rank peer) {
  const auto at = peers_.find(peer);
  return at == peers_.end() ? nullptr : at->second.connection.get();
}

const Connection* Endpoint::find(Rank peer) const {
  const auto at = peers_.find(peer);
  return at == peers_.end() ? nullptr : at->second.connection.get();
}

Connection& Endpoint::find_or_make(Rank peer, Instant now) {
  SF_CHECK(peer.value < config_.world_size && peer != config_.rank);
  auto& connection = peers_[peer].connection;
  if (!connection) {
    connection = std::make_unique<Connection>(
        Connection::Shared{config_, matcher_, drops_, traffic_, random_, events_, pool_,
                           shares_changed_, scratch_},
        peer, now);
  }
  return *connection;
}

void Endpoint::require_peer(Rank peer, Instant now) {
  check_clock(now);
  const Connection* const present = find(peer);
  const bool is_news = present == nullptr || present->is_passive();
  find_or_make(peer, now).require(now);
  if (is_news) events_.push_back(PeerWanted{peer});
  mark_dirty(peer);
}

Status Endpoint::install_peer(const PeerDescription& peer, Instant now) {
  check_clock(now);
  Connection& connection = find_or_make(peer.rank, now);
  link_peer(peer.rank, now);
  if (connection.state() != ConnectionState::kResolving) {
    if (connection.boot_id() == peer.boot_id || !connection.is_usable()) return base::ok_status();
    return Error{ErrorCode::kPeerLost,
                 "rank " + std::to_string(peer.rank.value) +
                     " was restarted: its roster entry names another incarnation than the one this "
                     "process is connected to. Restart all ranks together"};
  }
  const Status status = connection.install(peer, own_entry_, key_pair_, now);
  mark_dirty(peer.rank);
  return status;
}

bool Endpoint::learn_peer(const PeerDescription& peer, Instant now) {
  check_clock(now);
  next_hint_at_ = now;  // this one has found its entry
  if (const Connection* present = find(peer.rank)) {
    return present->state() != ConnectionState::kResolving || install_peer(peer, now).ok();
  }
  const bool is_known = find_or_make(peer.rank, now).learn(peer, own_entry_, key_pair_, now).ok();
  if (!is_known) peers_.erase(peer.rank);
  follow_hints();
  return is_known;
}

void Endpoint::link_peer(Rank peer, Instant now) {
  check_clock(now);
  Connection* connection = find(peer);
  if (connection == nullptr || !connection->is_passive()) return;
  (void)connection->link(now);
  mark_dirty(peer);
}

void Endpoint::fail_peer(Rank peer, Error error, Instant now) {
  check_clock(now);
  find_or_make(peer, now).fail(std::move(error));
  mark_dirty(peer);
}

std::optional<Error> Endpoint::peer_error(Rank peer) const {
  const Connection* connection = find(peer);
  return connection == nullptr ? std::nullopt : connection->error();
}

bool Endpoint::has_left(Rank peer) const {
  const Connection* connection = find(peer);
  return connection != nullptr && connection->state() == ConnectionState::kClosed;
}

bool Endpoint::has_message(Rank peer, uint64_t message_id) const {
  const Connection* connection = find(peer);
  return connection != nullptr && connection->has_message(message_id);
}

std::string Endpoint::describe_peer(Rank peer) const {
  const Connection* connection = find(peer);
  return connection == nullptr ? "rank " + std::to_string(peer.value) : connection->describe();
}

std::optional<Instant> Endpoint::last_heard_at(Rank peer) const {
  const Connection* connection = find(peer);
  if (connection == nullptr || !connection->was_reached()) return std::nullopt;
  return connection->last_heard_at();
}

bool Endpoint::post_send(Rank peer, const SendRequest& request) {
  Connection* connection = find(peer);
  SF_CHECK(connection != nullptr);
  if (!connection->is_usable()) return request.bytes.size() <= kCopiedMessageBytesMax;
  mark_dirty(peer);
  return connection->post_send(request);
}

void Endpoint::withdraw_group(Rank peer, uint64_t group) {
  Connection* connection = find(peer);
  if (connection == nullptr) return;
  connection->withdraw_group(group);
  mark_dirty(peer);
}

void Endpoint::attach_receive(Rank peer, uint64_t message_id, const PostedReceive& receive) {
  Connection* connection = find(peer);
  SF_CHECK(connection != nullptr);
  connection->attach_receive(message_id, receive, last_now_);
  mark_dirty(peer);
}

size_t Endpoint::control_frames(Rank peer) const {
  const Connection* connection = find(peer);
  return connection == nullptr ? 0 : connection->control_frames();
}

bool Endpoint::is_short_of_credit(Rank peer) const {
  const Connection* connection = find(peer);
  return connection != nullptr && connection->is_short_of_credit();
}

void Endpoint::post_pull(Rank peer, const wire::MessageKey& key, uint64_t bytes) {
  Connection* connection = find(peer);
  if (connection == nullptr || !connection->is_usable()) return;
  connection->post_pull(key, bytes);
  mark_dirty(peer);
}

void Endpoint::post_grant(Rank peer, const wire::MessageKey& key, uint64_t bytes) {
  Connection* connection = find(peer);
  SF_CHECK(connection != nullptr);
  if (!connection->is_usable()) return;
  connection->post_grant(key, bytes, last_now_);
  mark_dirty(peer);
}

void Endpoint::post_status(Rank peer, const wire::StatusFrame& status) {
  Connection* connection = find(peer);
  if (connection == nullptr || !connection->is_usable() || connection->is_passive()) return;
  connection->post_status(status);
  mark_dirty(peer);
}

void Endpoint::post_abort(Rank peer, const wire::AbortFrame& abort) {
  Connection* connection = find(peer);
  if (connection == nullptr || !connection->is_usable() || connection->is_passive()) return;
  connection->post_abort(abort);
  mark_dirty(peer);
}

void Endpoint::post_goodbye() {
  for (const auto& [rank, peer] : peers_) {
    peer.connection->post_goodbye();
    mark_dirty(rank);
  }
}

void Endpoint::drop_group(uint64_t group) {
  for (const auto& [rank, peer] : peers_) {
    peer.connection->drop_group(group);
    mark_dirty(rank);
  }
}

void Endpoint::wipe() {
  peers_.clear();
  dirty_.clear();
  deadlines_.clear();
  events_.clear();
  hinted_.clear();
  key_pair_.wipe();
  config_.job_secret = crypto::SecretBuffer();
}

void Endpoint::mark_dirty(Rank peer) {
  bool& is_dirty = peers_.at(peer).is_dirty;
  if (!is_dirty) dirty_.push_back(peer);
  is_dirty = true;
}

void Endpoint::update_credits() {
  shares_changed_ = false;
  for (const auto& [rank, peer] : peers_) {
    peer.connection->update_credit();
    mark_dirty(rank);
  }
}

// Peers take turns burst by burst, so that one large message cannot starve the others.
bool Endpoint::poll_transmit(Instant now, Transmit& out) {
  check_clock(now);
  if (shares_changed_) update_credits();
  while (!dirty_.empty()) {
    const Rank rank = dirty_.front();
    dirty_.pop_front();
    Peer& peer = peers_.at(rank);
    if (peer.connection->poll_burst(now, burst_, out)) {
      dirty_.push_back(rank);
      return true;
    }
    peer.is_dirty = false;
    set_deadline(rank, peer, peer.connection->deadline(now));
  }
  return false;
}

void Endpoint::note_send_error(Rank peer, base::PathId path, std::string what) {
  if (Connection* connection = find(peer)) connection->note_send_error(path, std::move(what));
}

void Endpoint::set_deadline(Rank rank, Peer& peer, Instant deadline) {
  if (peer.deadline == deadline) return;
  // The node is reused: a deadline moves with nearly every packet.
  auto node = deadlines_.extract({peer.deadline, rank});
  peer.deadline = deadline;
  if (deadline.is_never()) return;
  if (node.empty()) {
    deadlines_.emplace(deadline, rank);
  } else {
    node.value() = {deadline, rank};
    deadlines_.insert(std::move(node));
  }
}

std::optional<Event> Endpoint::poll_event() {
  if (events_.empty()) return std::nullopt;
  Event event = std::move(events_.front());
  events_.pop_front();
  return event;
}

Instant Endpoint::poll_timeout() const {
  return deadlines_.empty() ? Instant::never() : deadlines_.begin()->first;
}

bool Endpoint::is_drained_of(uint64_t group) const {
  return std::all_of(peers_.begin(), peers_.end(), [group](const auto& entry) {
    return entry.second.connection->is_drained_of(group);
  });
}

bool Endpoint::is_drained() const {
  for (const auto& [rank, peer] : peers_) {
    if (!peer.connection->is_drained()) return false;
  }
  return true;
}

TrafficCounters Endpoint::traffic() const {
  TrafficCounters total = traffic_;
  for (const auto& [rank, peer] : peers_) {
    total.bytes_resent += peer.connection->bytes_resent();
    total.fragments_resent += peer.connection->fragments_resent();
  }
  return total;
}

std::optional<PathReport> Endpoint::path(Rank peer, base::PathId id) const {
  const Connection* connection = find(peer);
  return connection == nullptr ? std::nullopt : connection->path(id, last_now_);
}

std::vector<std::pair<Rank, std::vector<PathReport>>> Endpoint::paths() const {
  std::vector<std::pair<Rank, std::vector<PathReport>>> reports;
  for (const auto& [rank, peer] : peers_) {
    reports.emplace_back(rank, peer.connection->paths(last_now_));
  }
  return reports;
}

}  // namespace securefabric::transport
