// One path: a (my socket, peer socket) pair with its own keys, packet numbers, RTT, window and
// acks.
//
// The sending half (what I send over the pair) and the receiving half (what the peer sends over the
// same pair) have different path ids: each side numbers its own direction. PROTOCOL.md §1, §6.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "base/ids.h"
#include "base/socket_address.h"
#include "base/time.h"
#include "crypto/packet_key.h"
#include "transport/ack_tracker.h"
#include "transport/congestion.h"
#include "transport/mtu_search.h"
#include "transport/rtt.h"
#include "transport/sent_packets.h"

namespace securefabric::transport {

// Where a sending path stands. PROTOCOL.md §6.
enum class PathState : uint8_t {
  kValidating,  // no echo of a challenge yet: carries no data
  kActive,      // carries data
  kAvoided,     // active, but congested or lossy: carries data only when no other has room
  kSuspect,     // does not deliver while others do: probed until it answers again
};

const char* path_state_name(PathState state);

struct Challenge {
  uint64_t value = 0;     // random; 0 is none
  base::Instant sent_at;  // for the RTT sample that its echo gives
};

struct SendingPath {
  SendingPath(base::PathId path_id, base::SocketAddress address, crypto::PathSealer path_sealer,
              size_t datagram_bytes_max = kDatagramBytesJumbo, bool heeds_delay = true)
      : id(path_id),
        to(address),
        sealer(std::move(path_sealer)),
        mtu(datagram_bytes_max),
        congestion(heeds_delay) {}

  // Once validated, and while it delivers. An avoided path is active.
  bool is_active() const { return state == PathState::kActive; }
  // While it has been asked and has not answered, too.
  bool is_avoided(base::Instant now) const {
    return is_active() && (now < avoided_until || probe_count > 0);
  }
  PathState state_at(base::Instant now) const {
    return is_avoided(now) ? PathState::kAvoided : state;
  }
  // For a round trip, data goes elsewhere if it can.
  void avoid(base::Instant now);

  // When the probe timer fires; never while nothing that asks for an ack is in flight. The first
  // time it asks the path, the second it judges the answer, later ones are probe timeouts.
  base::Instant probe_deadline() const;
  // A sample of the round trip, as RttEstimator takes it; what came before is old after kDelayKept.
  void on_sample(base::Duration sample, base::Duration host_delay, base::Instant now);
  // Counts a packet as in flight. Where the window is of few packets, a pause follows, so that a
  // window goes out per round trip, whether it is one and a half packets or a quarter.
  void on_sent(uint64_t bytes, base::Instant now);
  // Room for one more full packet, now; after a pause, the last one may overshoot. An empty window
  // always admits one, after the pause.
  bool has_room(base::Instant now) const;
  // Whether the next packet, of so many bytes, is to ask for its ack: half of the window is full
  // and a quarter has gone out without that, or no other packet fits behind it. The receiver cannot
  // know how small the window is.
  bool wants_ack_of_next(uint64_t bytes) const;
  // When there will be room though nothing arrives: the end of the pause; never if there is none.
  base::Instant room_at(base::Instant now) const;
  // How much one burst may take, so that several bursts make a window.
  size_t burst_bytes_max() const;
  // The next one is due when the interval has passed. Each challenge has its own value: an echo
  // that is slower than the repetition must not be timed from a later challenge.
  void on_challenge_sent(Challenge challenge, base::Duration interval_max = kProbeIntervalMax);
  // When the echoed challenge was sent, if it is one of ours; all of them are settled then.
  std::optional<base::Instant> on_echo(uint64_t value);
  void forget_challenges() { challenges.fill({}); }
  // Whether the peer has ever been seen to be where this path leads.
  bool has_answered() const { return state != PathState::kValidating; }

  // What has to be free for the next packet. Not single packets of a large window: they would be
  // bursts of one.
  uint64_t least_room() const;
  // The window is of so few packets that rounding to whole ones would double or halve the rate.
  bool is_paced() const;

  base::PathId id;                           // as I number it
  base::SocketAddress to;                    // the peer's socket
  crypto::PathSealer sealer;                 // owns the send key and the packet numbers
  PathState state = PathState::kValidating;  // never kAvoided: see state_at()
  bool is_in_use = true;                     // chosen for data; see PathScheduler
  bool is_for_data = true;      // false where only the peer opened it: then it carries answers
  MtuSearch mtu;                // how large a datagram may be
  RttEstimator rtt;             // of this pair of sockets
  CongestionWindow congestion;  // bytes this path may have in flight
  SentPackets sent;             // not yet settled
  base::Instant measured_at;    // when `rtt` got its newest sample
  base::Instant avoided_until;  // end of the round of avoidance
  base::Instant congested_at;   // last ack that told of congestion; 0: none did
  base::Instant paused_until;   // see on_sent()
  bool asked_for_ack = false;   // the last packet that carried payload did, at once
  uint64_t bytes_unasked = 0;   // sent since a packet asked for its ack; see wants_ack_of_next()
  uint32_t ce_count = 0;        // marks that the peer has reported
  uint64_t packets_lost = 0;    // declared lost here
  uint32_t probe_count = 0;     // probe timers fired since the last ack
  base::Instant asked_at;       // when the path was last asked
  bool wants_ping = false;      // a probe asks for something to ack
  std::array<Challenge, kChallengesKept> challenges{};  // not echoed yet, newest first
  base::Instant next_challenge_at;                      // when to send (again); never while active
  base::Duration challenge_interval;                    // doubles
  uint32_t tries = 0;                 // challenges before the first answer, of kUnansweredTries
  uint32_t echoes = 0;                // answered since the path became suspect
  uint64_t message_bytes = 0;         // payload sent here, resends included
  std::optional<uint64_t> echo_owed;  // a challenge of the peer that is to be echoed here
  std::string send_error;             // why the newest burst could not be sent; empty: it could
};

struct ReceivingPath {
  ReceivingPath(base::PathId path_id, crypto::PathOpener path_opener)
      : id(path_id), opener(std::move(path_opener)) {}

  base::PathId id;            // as the peer numbers it
  crypto::PathOpener opener;  // owns the receive keys and the replay window
  AckTracker acks;            // what to tell the peer
  bool is_confirmed = false;  // a CONFIRM arrived: data is accepted
};

}  // namespace securefabric::transport
