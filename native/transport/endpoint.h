// The sans-IO transport of one process: every peer, every packet, no socket and no clock.
//
//   A. Handlers for input from the network or the user: `handle_*`, `install_peer`, `post_*`.
//   B. Polling for output: `poll_transmit` (bursts), `poll_event`, `poll_timeout`.
//   C. Statistics.
//
// Time is an argument and never decreases; randomness comes from a seed. The same object runs on
// sockets (net/) and in the simulator (sim/). One thread at a time.
//
// A driver's turn: hand in every datagram, call handle_timeout, take all events, then poll_transmit
// until it returns false, then wait until poll_timeout or the next datagram.
#pragma once

#include <array>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <unordered_map>
#include <vector>

#include "base/random.h"
#include "transport/connection.h"

namespace securefabric::transport {

class Endpoint {
 public:
  // `matcher` outlives the endpoint.
  Endpoint(EndpointConfig config, ReceiveMatcher& matcher);

  // --- A. Input ---

  std::array<uint8_t, 32> public_key() const { return key_pair_.public_key(); }
  // The entry as published: every link key is bound to it. Before the first install_peer.
  void set_own_entry(base::Bytes entry) { own_entry_ = base::to_vector(entry); }

  // `datagram` arrived on local socket `socket`. It may be anything: hostile bytes end here.
  // `waited` is how long it lay in this host before `now`, as far as that is known.
  void handle_datagram(base::Instant now, uint8_t socket, bool is_marked_ce, base::Bytes datagram,
                       base::Duration waited = base::Duration());
  void handle_timeout(base::Instant now);

  // Starts to reach a peer if that has not happened yet; an unreachable one becomes PeerFailed.
  void require_peer(base::Rank peer, base::Instant now);
  // Answers to PeerWanted. A peer with another boot id than before is refused with an error.
  base::Status install_peer(const PeerDescription& peer, base::Instant now);
  // Answers to a hint: the peer can be heard from now on, and that is all. False when its entry
  // cannot be used, which is nobody's business as long as nobody wants the peer.
  bool learn_peer(const PeerDescription& peer, base::Instant now);
  // A peer that is known is wanted by another engine of this rank.
  void link_peer(base::Rank peer, base::Instant now);
  void fail_peer(base::Rank peer, base::Error error, base::Instant now);
  // Why the peer cannot be used, if that is so.
  std::optional<base::Error> peer_error(base::Rank peer) const;
  // The peer left in good order. Messages of its that are held can still be received.
  bool has_left(base::Rank peer) const;
  // Whether a message that was held is still there.
  bool has_message(base::Rank peer, uint64_t message_id) const;
  std::string describe_peer(base::Rank peer) const;
  // When the newest of what the peer has answered was sent; nothing if it was never reached.
  std::optional<base::Instant> last_heard_at(base::Rank peer) const;

  // All of these need require_peer first; for a peer that is lost they do nothing. (A held message
  // of a peer that has left can still be given its receive.)
  // True when the message was copied, or the peer is lost: nothing will be reported.
  bool post_send(base::Rank peer, const SendRequest& request);
  void attach_receive(base::Rank peer, uint64_t message_id, const PostedReceive& receive);
  // Ends what the group has posted to and from this peer: none of its memory is touched again.
  // (An operation that fails ends its whole group.) What was copied still goes out.
  void withdraw_group(base::Rank peer, uint64_t group);
  // Tells the peer that `bytes` of this message are expected, before it asks.
  void post_grant(base::Rank peer, const wire::MessageKey& key, uint64_t bytes);
  // Whether the peer may hold messages back for want of credit; then a receive that waits for one
  // pulls it. A pull may be in vain, and is repeated while its receive waits.
  bool is_short_of_credit(base::Rank peer) const;
  void post_pull(base::Rank peer, const wire::MessageKey& key, uint64_t bytes);
  void post_status(base::Rank peer, const wire::StatusFrame& status);
  void post_abort(base::Rank peer, const wire::AbortFrame& abort);
  // Tells every peer that this process leaves; worth repeating kGoodbyeCopies times.
  void post_goodbye();
  void drop_group(uint64_t group);
  // The end: every link and every key is gone. What arrives afterwards is counted as a stranger's;
  // no peer may be required or installed any more.
  void wipe();

  // --- B. Output ---

  bool poll_transmit(base::Instant now, Transmit& out);
  // The host refused to send the last burst of this path. It counts as lost; should the peer turn
  // out to be out of reach, its error says why: `what` names addresses and cause.
  void note_send_error(base::Rank peer, base::PathId path, std::string what);
  std::optional<Event> poll_event();
  base::Instant poll_timeout() const;

  // --- C. Statistics ---

  // Frames other than data that wait for the peer.
  size_t control_frames(base::Rank peer) const;
  bool is_drained() const;
  // Whether what was sent in one group has arrived.
  bool is_drained_of(uint64_t group) const;
  const DropCounters& drops() const { return drops_; }
  TrafficCounters traffic() const;
  std::vector<std::pair<base::Rank, std::vector<PathReport>>> paths() const;
  // Nothing when this rank has no such sending path to the peer.
  std::optional<PathReport> path(base::Rank peer, base::PathId id) const;
  const EndpointConfig& config() const { return config_; }

 private:
  struct Peer {
    std::unique_ptr<Connection> connection;  // never null once the peer is known
    bool is_dirty = false;                   // in dirty_
    base::Instant deadline =
        base::Instant::never();  // as it stands in deadlines_; never: not there
  };

  Connection* find(base::Rank peer);
  const Connection* find(base::Rank peer) const;
  Connection& find_or_make(base::Rank peer, base::Instant now);
  void hint_at(base::Rank peer);
  void follow_hints();
  void check_clock(base::Instant now);
  void excuse_silence(base::Instant now);
  // The peer may have something to send or a new deadline.
  void mark_dirty(base::Rank peer);
  void update_credits();
  void set_deadline(base::Rank rank, Peer& peer, base::Instant deadline);

  EndpointConfig config_;
  crypto::KeyPair key_pair_;        // of this incarnation
  std::vector<uint8_t> own_entry_;  // as published
  ReceiveMatcher& matcher_;
  base::Random random_;
  DropCounters drops_;
  TrafficCounters traffic_;
  std::deque<Event> events_;
  CreditPool pool_;                   // what the peers may have in flight to us
  bool shares_changed_ = false;       // the peers' credit is to be looked at
  Scratch scratch_;                   // of the connections
  std::map<base::Rank, Peer> peers_;  // ordered: determinism
  std::deque<base::Rank> dirty_;      // peers to poll for output, each once
  std::set<std::pair<base::Instant, base::Rank>> deadlines_;  // one per peer that has one
  std::set<base::Rank> hinted_;  // ranks whose SPI somebody has used, to be looked up in turn
  base::Rank last_hinted_;       // whose turn it was
  base::Instant next_hint_at_;   // when the next one may be looked up
  std::vector<uint8_t> burst_;   // the datagrams of one Transmit
  base::Instant last_now_;       // time never decreases
};

}  // namespace securefabric::transport
