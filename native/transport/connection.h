// All state with one peer: keys, paths, messages, liveness. Sans-IO; engine thread.
//
// In:  install ─► handle_packet (open, decode, dispatch) ─► effects: events, acks, grants
// Out: poll_burst ─► choose a path ─► fill packets (acks, control, data) ─► seal ─► one GSO burst
// Keys: apply(LinkEpochs::Effects) ─► receive keys in, sending moves, old keys wiped
// Time: handle_timeout ─► loss by time, probe timeouts, challenges, heartbeat, death
//
// The states:  resolving ─► (known) ─► confirming ─► open ─► closed (the peer left) or failed
// (lost). A peer is known when a stranger may have made us look it up: it can be heard, and nothing
// goes out, no timer runs and nothing is reported, until a packet of its verified or somebody wants
// it.
#pragma once

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <variant>
#include <vector>

#include "base/random.h"
#include "transport/counters.h"
#include "transport/credit_pool.h"
#include "transport/endpoint_config.h"
#include "transport/message.h"
#include "transport/message_receive.h"
#include "transport/message_send.h"
#include "transport/packet_builder.h"
#include "transport/path.h"
#include "transport/path_scheduler.h"
#include "wire/header.h"

namespace securefabric::transport {

// One GSO send: equal datagrams of `segment_bytes`, the last may be shorter.
struct Transmit {
  uint8_t socket = 0;        // local socket to send from
  base::SocketAddress to;    // the peer's socket
  size_t segment_bytes = 0;  // size of each datagram but the last
  base::Bytes bytes;         // valid until the next poll_transmit
  base::Rank peer;           // whom it is for, and
  base::PathId path;         // on which path: for Endpoint::note_send_error
};

enum class ConnectionState : uint8_t { kResolving, kKnown, kConfirming, kOpen, kClosed, kFailed };

// A path as statistics show it.
struct PathReport {
  base::PathId id;
  base::SocketAddress to;
  PathState state = PathState::kValidating;
  bool is_in_use = false;  // chosen for data; others stand by
  double srtt_us = 0;      // round trip, smoothed
  double delay_us = 0;     // the part of it that the network takes, smoothed
  uint64_t window_bytes = 0;
  uint64_t in_flight_bytes = 0;
  uint64_t mtu_bytes = 0;  // largest datagram that it is known to carry
  uint64_t packets_sealed = 0;
  uint64_t packets_lost = 0;   // declared lost
  uint64_t message_bytes = 0;  // payload sent on it, resends included
  uint32_t epoch = 0;          // of the keys that it seals with; the same for all paths of a peer
};

// Memory that calls use and leave; one for all connections of an endpoint, so that an idle peer
// takes none.
struct Scratch {
  std::vector<uint8_t> plaintext;  // of one opened packet
  std::vector<uint8_t> bitmap;     // of one ack
  SentPackets::Settled settled;    // by one ack or timeout
};

// "12.5 s", for messages.
std::string in_seconds(base::Duration duration);

class Connection {
 public:
  // What every connection of an endpoint shares. Outlives the connections.
  struct Shared {
    const EndpointConfig& config;
    ReceiveMatcher& matcher;
    DropCounters& drops;
    TrafficCounters& traffic;
    base::Random& random;
    std::deque<Event>& events;
    CreditPool& pool;
    bool& shares_changed;  // the pool's: every connection is to look at its credit
    Scratch& scratch;
  };

  Connection(Shared shared, base::Rank peer, base::Instant now);

  // Derives the keys, and nothing else: the peer is known. On an error nothing has changed.
  base::Status learn(const PeerDescription& peer, base::Bytes own_entry,
                     const crypto::KeyPair& key_pair, base::Instant now);
  // Opens the paths to a peer that is known. An error fails the connection.
  base::Status link(base::Instant now);
  // Both. An error fails the connection.
  base::Status install(const PeerDescription& peer, base::Bytes own_entry,
                       const crypto::KeyPair& key_pair, base::Instant now);
  void fail(base::Error error);
  // Somebody needs this peer: it is an error if it does not join in time.
  void require(base::Instant now);

  // A datagram whose SPI is this peer's. `datagram` starts with the decoded header.
  // `waited` is how long it lay in this host.
  void handle_packet(base::Instant now, const wire::Header& header, bool is_marked_ce,
                     base::Bytes datagram, base::Duration waited);
  void handle_timeout(base::Instant now);
  // This process did not run for so long, and heard nobody: the peer has that much more time.
  void excuse_silence(base::Duration absence) { last_heard_at_ = last_heard_at_ + absence; }
  base::Instant deadline(base::Instant now) const;
  // Fills `burst` and `out`; false when there is nothing to send now.
  bool poll_burst(base::Instant now, base::MutableBytes burst, Transmit& out);
  void note_send_error(base::PathId path, std::string what);

  bool post_send(const SendRequest& request) { return sends_.post(request); }
  void attach_receive(uint64_t message_id, const PostedReceive& receive, base::Instant now);
  // Receives and sends of the group end where they are; see the queues.
  void withdraw_group(uint64_t group);
  void post_grant(const wire::MessageKey& key, uint64_t bytes, base::Instant now);
  // Asks for a message that may wait for credit.
  void post_pull(const wire::MessageKey& key, uint64_t bytes);
  // The peer may have messages that wait for credit.
  bool is_short_of_credit() const {
    return receives_.announced() + kAnnouncedLow >= advertised_announced_limit_;
  }
  void post_status(const wire::StatusFrame& status);
  void post_abort(const wire::AbortFrame& abort);
  void post_goodbye();
  void drop_group(uint64_t group);
  // Tells the peer what it may send, if that has changed by enough.
  void update_credit();

  ConnectionState state() const { return state_; }
  size_t control_frames() const { return control_.size(); }
  bool is_usable() const { return state_ < ConnectionState::kClosed; }
  // Known, and no more: nothing may be sent.
  bool is_passive() const { return state_ == ConnectionState::kKnown; }
  // A message from the peer that waits for its receive; a whole one once the peer has left.
  bool has_message(uint64_t message_id) const { return receives_.has(message_id); }
  const std::optional<base::Error>& error() const { return error_; }
  const base::BootId& boot_id() const { return peer_info_.boot_id; }
  // Everything sent has been acknowledged, and nothing waits to be sent.
  bool is_drained() const;
  // Whether what was sent in one group has arrived.
  bool is_drained_of(uint64_t group) const { return !is_usable() || sends_.is_drained_of(group); }
  bool was_reached() const { return was_reached_; }
  base::Instant last_heard_at() const { return last_heard_at_; }
  std::vector<PathReport> paths(base::Instant now) const;
  std::optional<PathReport> path(base::PathId id, base::Instant now) const;
  // Where the peer is, for messages: "rank 3 (10.0.0.7:4410)".
  std::string describe() const;
  uint64_t bytes_resent() const { return sends_.resent_bytes(); }
  uint64_t fragments_resent() const { return sends_.resent_fragments(); }

 private:
  using ControlFrame = std::variant<SentCredit, SentEpoch, wire::GrantFrame, wire::StatusFrame,
                                    std::shared_ptr<const wire::AbortFrame>, wire::GoodbyeFrame>;

  // What the frames of one packet asked for, gathered before acting on the path.
  struct PacketContent {
    // In this order, no two go on to AckTracker::Arrival side by side: copied by one read of two
    // bytes that were just written one by one, they would wait until the packet's bytes, written to
    // a tensor before, have reached the cache.
    bool is_ack_eliciting = false;
    bool is_malformed = false;
    bool wants_ack_now = false;
  };

  // connection.cc: set-up, liveness
  void open_sending_paths(size_t count, base::Instant now);
  SendingPath& open_sending_path(base::PathId id, base::Instant now);
  base::Duration least_base_delay() const;  // of all paths
  PathReport report_of(const SendingPath& path, base::Instant now) const;
  ReceivingPath* receiving_path(base::PathId id);
  bool may_receive_on(base::PathId id) const;
  void report_failure(base::ErrorCode code, const std::string& what);
  void check_liveness(base::Instant now);
  base::Duration heartbeat(base::Instant now) const;  // after which the peer is asked
  // The peer has answered what we sent at `asked_at`: it lived then. When its answer arrived says
  // nothing, for the network may have held that back.
  void heard(base::Instant asked_at) { last_heard_at_ = std::max(last_heard_at_, asked_at); }
  std::string join_failure(base::Instant now) const;
  std::string send_errors() const;

  // connection_receive.cc: what arrives
  void count_drop(crypto::OpenStatus status);
  PacketContent handle_frames(base::Instant now, ReceivingPath& path, crypto::EpochBit sealed_in,
                              base::Bytes plaintext);
  void handle(base::Instant now, ReceivingPath& path, const wire::DataFrame& frame,
              PacketContent& content);
  void handle(base::Instant now, const wire::AckFrame& frame, PacketContent& content);
  void handle(base::Instant now, ReceivingPath& path, const wire::ConfirmFrame& frame);
  void handle(base::Instant now, ReceivingPath& path, const wire::ConfirmEchoFrame& frame);
  void on_echo(SendingPath& path, base::Duration round_trip, base::Instant now);
  void handle(const wire::GrantFrame& frame);
  void handle(const wire::CreditFrame& frame);
  void handle(const wire::AbortFrame& frame);
  void handle_goodbye();
  void apply(InboundMessages::Effects& effects, base::Instant now);
  void send_grant(const wire::MessageKey& key, uint64_t bytes, base::Instant now);
  void serve_grants(base::Instant now);
  void on_congestion_report(SendingPath& path, uint32_t ce_count, base::Instant now);
  void settle(SendingPath& path, const SentPackets::Settled& settled, base::Instant now);
  void settle_frame_lost(const ReliableFrame& frame);

  // connection_epochs.cc: the keys of all paths change together
  static EpochLimits epoch_limits(const EpochLimits& configured, base::Random& random);
  void apply(const LinkEpochs::Effects& effects);
  void handle(base::Instant now, const wire::EpochFrame& frame, crypto::EpochBit sealed_in);
  void begin_epoch_if_due(base::Instant now);
  void retire_epoch_if_due(base::Instant now);
  void fail_epoch_if_overdue(base::Instant now);
  base::Duration epoch_linger() const;    // how long old receive keys are kept
  base::Duration epoch_patience() const;  // how long the peer may take to follow
  crypto::PathOpener make_opener(base::PathId id) const;
  // The connection has ended: nothing is sealed or opened any more.
  void wipe_keys();

  // connection_send.cc: what goes out
  void on_probe_timer(SendingPath& path, base::Instant now);
  void suspect(SendingPath& path, base::Instant now);
  bool another_delivers(const SendingPath& path) const;
  void resend(const SentPacket* packet);
  // Whose turn it is to send. A path that is asked, or answers, carries no payload for that: it may
  // not work, or may not be what the scheduler would choose.
  struct Turn {
    SendingPath* path = nullptr;  // null: nothing to send now
    bool takes_payload = false;   // control and data may go on it
  };
  Turn pick_turn(base::Instant now);
  SendingPath* pick_urgent_path(base::Instant now);
  SendingPath* pick_ack_path(base::Instant now);
  bool has_payload() const { return !control_.empty() || (sends_.has_next() && has_peer_room()); }
  bool has_peer_room(uint64_t more = 0) const;
  // A path that never answered gets no more bytes than came from the peer, beside its first
  // challenges (nearly: the last packet may overdraw), so that a member who names somebody else's
  // address gains nothing. Challenges it once more, if that is paid for and not too soon:
  bool challenge_again(SendingPath& path, base::Instant now);
  base::Duration challenge_interval_max(const SendingPath& path) const {
    if (path.has_answered()) return kProbeIntervalMax;
    return state_ == ConnectionState::kOpen ? kUnansweredIntervalMax : kJoiningIntervalMax;
  }
  // Whether the path may carry answers now: echoes and acks.
  bool may_answer(const SendingPath& path) const {
    return path.has_answered() || unanswered_credit_ > 0;
  }
  bool fill_packet(const Turn& turn, base::Instant now, bool is_first, PacketBuilder& builder,
                   SentPacket& record);
  bool seal_packet(SendingPath& path, base::Instant now, const PacketBuilder& builder,
                   SentPacket record, base::MutableBytes datagram);
  void fill_path_frames(SendingPath& path, base::Instant now, PacketBuilder& builder,
                        SentPacket& record);
  void fill_acks(base::Instant now, PacketBuilder& builder);
  void fill_control(PacketBuilder& builder, SentPacket& record);
  uint64_t fill_data(SendingPath& path, PacketBuilder& builder, SentPacket& record);
  SendingPath* sending_path(base::PathId id);
  // Appends a control frame; too many of them are a peer that acknowledges nothing.
  void queue_control(ControlFrame frame);

  Shared shared_;
  base::Rank peer_;  // global rank of the other end
  ConnectionState state_ = ConnectionState::kResolving;
  std::optional<base::Error> error_;                    // why it failed or closed
  bool was_reached_ = false;                            // it was open once
  base::Instant required_at_ = base::Instant::never();  // when somebody first needed the peer: the
                                                        // join timeout counts from there
  PeerDescription peer_info_;                           // valid from kConfirming on
  base::Spi peer_spi_;                                  // what the peer listens to me on
  size_t datagram_bytes_ = 0;                           // largest that both ends take
  LinkEpochs epochs_;                                   // the link's secrets
  std::vector<std::unique_ptr<SendingPath>> sending_;   // in the order of opening; never closed
  std::map<base::PathId, std::unique_ptr<ReceivingPath>> receiving_;  // made when a packet verified
  PathScheduler scheduler_;                                           // which of sending_ is next
  SendQueue sends_;                                                   // messages to the peer
  InboundMessages receives_;                                          // messages from the peer
  std::deque<ControlFrame> control_;                                  // to be sent, in order
  // Unasked grants beyond kGrantsOutstandingMax, in order.
  std::deque<std::pair<wire::MessageKey, uint64_t>> grants_waiting_;
  uint64_t next_grant_id_ = 0;                           // never reused on this connection
  uint64_t advertised_eager_limit_ = kEagerWindow;       // last credit queued for the peer
  uint64_t advertised_announced_limit_ = kAnnouncedMax;  // likewise
  uint64_t advertised_window_ = kPeerWindowInitial;      // likewise
  uint32_t next_credit_serial_ = 1;                      // of the next credit for the peer
  bool credit_queued_ = false;                           // a SentCredit is in control_
  uint64_t peer_window_ = kPeerWindowInitial;            // what the peer lets us have in flight
  uint32_t peer_credit_serial_ = 0;                      // of the newest credit from the peer
  base::Instant last_heard_at_;                          // see heard(); excused: later
  base::Duration waited_;                                // of the packet in hand, in this host
  int64_t unanswered_credit_ = 0;                        // see challenge_again(); bytes
  base::Instant last_sent_at_;                           // last packet that asked for an ack
  // Shorthands for parts of shared_.scratch.
  std::vector<uint8_t>& plaintext_;
  std::vector<uint8_t>& bitmap_;
  SentPackets::Settled& settled_;
};

}  // namespace securefabric::transport
