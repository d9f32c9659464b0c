// Every bound of the transport with its reason. What is not bounded here is bounded by what the
// caller posted.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/time.h"
#include "wire/frames.h"

namespace securefabric::transport {

// --- Packets -------------------------------------------------------------------------------------
// Largest datagram sealed, over loopback alone (PROTOCOL.md §1). Two of them fill one GSO send, and
// half of what a packet costs is saved. A single one of 64 KB was slower to receive (Linux 6.18).
// 80 bytes less, the overhead, is a multiple of the cipher's block.
inline constexpr size_t kDatagramBytesMax = 32'496;
// What Ethernet's jumbo frames carry; seven fill one GSO send. Windows and their steps are counted
// in these.
inline constexpr size_t kDatagramBytesJumbo = 8'960;
// Smallest datagram every path must carry: IPv6's minimum MTU less its headers, as in QUIC.
inline constexpr size_t kDatagramBytesMin = 1200;
// Fragments are cut at multiples of this, so that no element (complex128 is 16 bytes) is split.
inline constexpr size_t kFragmentAlignment = 16;
// One GSO send: more segments are refused by older kernels, more bytes by IP.
inline constexpr size_t kBurstSegmentsMax = 64;
inline constexpr size_t kBurstBytesMax = 65'000;

// --- Peers and paths -----------------------------------------------------------------------------
// What an entry has room for (PROTOCOL.md §3.2); path_id has eight bits for each end's socket.
inline constexpr size_t kSocketsMax = 128;
// The same for all engines of a rank together: an entry has room for the addresses of some 300
// sockets, and certificates need some of it.
inline constexpr size_t kSocketsOfRankMax = 192;
// Per-path state is a few KB; QUIC multipath and MRC use up to 256 paths.
inline constexpr size_t kPathsPerPeerMax = 256;

// --- Messages ------------------------------------------------------------------------------------
// A message up to this many bytes is sent before its receive is known to be posted.
inline constexpr uint64_t kEagerMessageBytesMax = 64 * 1024;
// A message up to this many bytes is copied when it is posted, so that its sender need not wait for
// the acknowledgement; copying a larger one would cost more than the wait.
inline constexpr uint64_t kCopiedMessageBytesMax = 16 * 1024;
static_assert(kCopiedMessageBytesMax <= kEagerMessageBytesMax);
// Large messages that are passed on take turns with others once these have had so many bytes more:
// little enough to be in the cache still, and enough to be worth a round trip when the others end,
// for then a rank would wait for what comes back.
inline constexpr uint64_t kOthersLead = 1024 * 1024;
// What one peer may have outstanding of such messages, in charge (see eager_charge): bounds the
// memory that unexpected messages can take on the receiver.
inline constexpr uint64_t kEagerWindow = 4 * 1024 * 1024;
// Charged per eager message on top of its bytes: its bookkeeping on the receiver.
inline constexpr uint64_t kEagerMessageOverhead = 256;
// Messages that one peer may have announced and not finished: requests to send, and empty messages
// that found no eager credit. Each costs the receiver its bookkeeping alone. What is beyond waits
// at the sender.
inline constexpr uint64_t kAnnouncedMax = 16'384;
// Fewer than this are left of a peer's announcements, as far as the receiver knows: what a posted
// receive waits for may be waiting at the sender, so it is asked for by name.
inline constexpr uint64_t kAnnouncedLow = 256;
// Large messages that were granted unasked and are not finished; further grants wait at the
// receiver. Half of what a sender keeps of them.
inline constexpr size_t kGrantsOutstandingMax = 32'768;
// Grants that arrived before their message was posted.
inline constexpr size_t kEarlyGrantsMax = 65'536;
// Holes in the record of finished messages: each is a message begun and never finished.
inline constexpr size_t kFinishedRangesMax = 65'536;
// Pieces into which the record of one message's arrived bytes may fall apart.
inline constexpr size_t kMessageRangesMax = 65'536;
// Control frames queued for one peer; grants and the like, each a few dozen bytes.
inline constexpr size_t kControlFramesMax = 131'072;
// Questions of a peer are not answered while so many frames wait for it.
inline constexpr size_t kControlFramesBusy = 1'024;

// --- Acknowledgements ----------------------------------------------------------------------------
// An ack is sent at once after this many bytes, one full burst.
inline constexpr uint64_t kAckEveryBytes = 64 * 1024;
// ... or this many packets: an ack reports at most 1024 of them (wire::AckFrame).
inline constexpr uint64_t kAckEveryPackets = 256;
// An ack waits at most this long for something to ride on.
inline constexpr base::Duration kAckDelayMax = base::Duration::millis(1);

// --- Loss recovery -------------------------------------------------------------------------------
// A packet is lost when a later one of its path arrived and a round trip, a quarter and at least
// this have passed: threads that move between cores, and links in bundles, reorder by bursts.
inline constexpr base::Duration kReorderingMin = base::Duration::micros(500);
// What late packets can add to that. More is not worth the wait: a resend costs less.
inline constexpr base::Duration kReorderingMax = base::Duration::millis(20);
// Samples without a late packet after which half of the addition is forgotten.
inline constexpr int kReorderingMemory = 1000;
// Before the first sample (RFC 9002 §6.2.2 has 333 ms for the Internet; this is a cluster).
inline constexpr base::Duration kInitialRtt = base::Duration::millis(20);
// Floor and ceiling of the probe timeout, which comes after a tail probe has found no answer on any
// path. The floor covers a peer that waits for its turn on shared cores.
inline constexpr base::Duration kPtoMin = base::Duration::millis(50);
inline constexpr base::Duration kPtoMax = base::Duration::seconds(1);
// Probe timeouts in a row after which a window is closed to its floor.
inline constexpr uint32_t kPersistentAfterPtos = 2;
// A suspect path is probed with this interval, doubling up to the ceiling, until it answers, for it
// has answered before. Six doublings:
// so a path that was repaired is back within a second.
inline constexpr base::Duration kProbeIntervalMin = base::Duration::millis(10);
inline constexpr base::Duration kProbeIntervalMax = base::Duration::millis(640);
// A path that never answered may lead to somebody who has nothing to do with us: whoever holds a
// key may name any address. It is challenged so often, and from then on only while its peer is
// wanted, with intervals that double up to the first of these until one path to the peer works,
// which the join timeout bounds, and to the second from then on.
inline constexpr uint32_t kUnansweredTries = 8;
inline constexpr base::Duration kJoiningIntervalMax = base::Duration::millis(2560);
inline constexpr base::Duration kUnansweredIntervalMax = base::Duration::seconds(10);
// What else goes there never is more than came from the peer; of which so much is remembered.
inline constexpr int64_t kUnansweredCreditMax = 16 * 1200;
// Challenges of one path that an echo may still answer. As the interval doubles, that covers round
// trips of two seconds.
inline constexpr size_t kChallengesKept = 4;
// Echoes that bring a suspect path back.
inline constexpr uint32_t kProbeEchoesNeeded = 2;
// Records of packets sent on one path and neither acked nor lost. Half the replay window.
inline constexpr size_t kInFlightPacketsMax = 4096;

// --- Congestion ----------------------------------------------------------------------------------
// A path's; the first kPathsOpenedFirst together have kPeerWindowInitial, about. At least
// kPacedPackets of the path's packets, where these are larger than jumbo frames.
inline constexpr uint64_t kWindowInitial = 4 * kDatagramBytesJumbo;
// After timeouts, and what losses alone leave: a lost packet needs another one behind it to tell.
inline constexpr uint64_t kWindowRestart = 2 * kDatagramBytesJumbo;
// Where many share a queue, each has less than a packet in flight: pauses see to that. Much less,
// and the way back up would take long.
inline constexpr uint64_t kWindowMin = kDatagramBytesJumbo / 4;
// Below so many packets, a window goes out with pauses instead of being rounded to whole packets.
// Larger packets than jumbo frames count as those: loopback has no queue to share.
inline constexpr uint64_t kPacedPackets = 4;
// An ack is asked for with each of so many parts of a window, once it is half full: the receiver,
// who would wait for kAckEveryBytes or kAckDelayMax, does not know how small the window is.
inline constexpr uint64_t kAcksPerWindow = 4;
inline constexpr uint64_t kWindowMax = 2 * 1024 * 1024;
// Additive growth per round trip.
inline constexpr uint64_t kWindowStep = kDatagramBytesJumbo;
// Queueing delay that a path aims at, if its round trip without a queue is not longer: the noise of
// software at both ends is of this order.
inline constexpr base::Duration kQueueingDelayTarget = base::Duration::micros(500);
// Smaller windows aim at more, by the square root (Swift §3.4): they are of slow links, where a
// packet takes long, or of many that share one, whose packets meet.
inline constexpr uint64_t kWindowOfTarget = 16 * kDatagramBytesJumbo;
// The least delay of a path is remembered for one to two of these.
inline constexpr base::Duration kBaseDelayPeriod = base::Duration::seconds(10);
// Losses up to this share of a path's packets (in 1/65536: 3 %) are not taken for congestion while
// the queue is short; smoothed over about 2^gain packets.
inline constexpr uint32_t kLossShareTolerated = 1'966;
inline constexpr unsigned kLossShareGain = 9;

// --- Choice of paths -----------------------------------------------------------------------------
// Paths opened to a peer at first; more are opened when paths collide, if the settings allow.
inline constexpr size_t kPathsOpenedFirst = 8;
// Paths in use to a peer that has not needed more for kCalmPeriod.
inline constexpr size_t kPathsWhenCalm = 4;
inline constexpr base::Duration kCalmPeriod = base::Duration::seconds(1);
// Delays that differ by less are the same: the noise of a host that is quiet.
inline constexpr base::Duration kSameDelay = base::Duration::micros(50);
// A path whose delay was measured so long ago is asked while others carry data, and what it answers
// takes the place of that delay. A link that was slow is back in a second or so, as one that was
// cut; not sooner, for a slow one may pass for fast until it has carried data again.
inline constexpr base::Duration kDelayKept = base::Duration::seconds(1);
// How often the set of paths in use is looked over.
inline constexpr base::Duration kReviewInterval = base::Duration::millis(10);

// --- Credits against incast ----------------------------------------------------------------------
// What a peer may have in flight to us before we have told it: a few bursts.
inline constexpr uint64_t kPeerWindowInitial = 256 * 1024;
// What every peer may have in flight, however many there are: a packet's worth of progress.
inline constexpr uint64_t kPeerWindowMin = 2 * kDatagramBytesJumbo;
// What a peer may have in flight that is not expected to send anything large.
inline constexpr uint64_t kPeerWindowIdle = 1024 * 1024;
// A peer keeps its share this long after the last sign that it sends. Longer than a pause between
// two messages of one collective; shorter than a person notices.
inline constexpr base::Duration kPeerActivePeriod = base::Duration::millis(20);
// What receive buffers take when nobody has said: the smallest that a Linux host grants.
inline constexpr uint64_t kReceiveBudgetDefault = 4 * 1024 * 1024;

// --- Path MTU ------------------------------------------------------------------------------------
// Copies of a probe that must be lost before its size counts as too large.
inline constexpr int kMtuProbesMax = 3;
// The search ends when what works and what does not are this close.
inline constexpr size_t kMtuStep = 64;
// What fits an Ethernet frame behind IPv4 and UDP headers: the likeliest answer below the largest.
inline constexpr size_t kMtuEthernet = 1'472;
// Packets above the minimum that are lost, with none acknowledged between, when a route's MTU has
// shrunk. A false alarm costs one round trip of small packets.
inline constexpr int kMtuBlackHoleLosses = 6;
// A search that ended below the ceiling is repeated (RFC 8899 has ten minutes for the Internet).
inline constexpr base::Duration kMtuRaiseInterval = base::Duration::seconds(60);

// --- Epochs --------------------------------------------------------------------------------------
// Old receive keys are kept for this many of the longest probe timeout after the peer has moved:
// what was sealed with them has arrived by then or is resent under the new ones.
inline constexpr int64_t kEpochLingerPtos = 3;
// A peer that has not followed into an epoch this long after the change began, the death timeout
// added, is failed. It answers and does not change keys, so it is broken or does not want to.
inline constexpr base::Duration kEpochChangeMax = base::Duration::seconds(60);
// A peer that changes epochs faster than this, for so many in a row, breaks the protocol: each
// costs this rank a key exchange. Honest ends wait for kEpochLingerPtos of kPtoMin at least.
inline constexpr base::Duration kEpochIntervalMin = base::Duration::millis(100);
inline constexpr int64_t kEpochsAtOnce = 16;
// Links change within the last part (one in this many) of their age, at random: those that were
// made together do not all change together.
inline constexpr int64_t kEpochAgeSpread = 8;

// --- Liveness ------------------------------------------------------------------------------------
inline constexpr base::Duration kJoinTimeoutDefault = base::Duration::seconds(60);
inline constexpr base::Duration kDeathTimeoutDefault = base::Duration::seconds(10);
inline constexpr base::Duration kHeartbeatDefault = base::Duration::seconds(1);
// A peer that has answered nothing for two heartbeats is asked so many times as often.
inline constexpr int64_t kHeartbeatHaste = 4;
// A goodbye is not acked by somebody who is gone; a few copies make its loss unlikely.
inline constexpr int kGoodbyeCopies = 3;

// Receivers grant large collective messages when they post the receive, before they hear of them.
// They cannot know of point-to-point messages, nor that a small one has found no credit.
constexpr bool is_granted_unasked(const wire::MessageKey& key, uint64_t message_bytes) {
  return key.channel == wire::Channel::kCollective && message_bytes > kEagerMessageBytesMax;
}

constexpr uint64_t eager_charge(uint64_t message_bytes) {
  return message_bytes + kEagerMessageOverhead;
}

}  // namespace securefabric::transport
