// What the transport counts. One struct per endpoint and one per path; plain integers, engine
// thread.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace securefabric::transport {

// Datagrams dropped, by cause. A drop is silent and has no other effect than its count here.
struct DropCounters {
  uint64_t too_short = 0;          // cannot hold a header and a tag
  uint64_t bad_version = 0;        // version, class or reserved flags
  uint64_t unknown_spi = 0;        // no peer has this SPI, or its keys are not known yet
  uint64_t path_mismatch = 0;      // the path id does not fit the socket it arrived on
  uint64_t stale_generation = 0;   // key generation too far back
  uint64_t future_generation = 0;  // key generation too far ahead
  uint64_t replay_duplicate = 0;   // packet number already seen
  uint64_t replay_too_old = 0;     // packet number behind the window
  uint64_t auth_failed = 0;        // the tag did not verify
  uint64_t packet_limit = 0;       // packet number beyond the hard limit
  uint64_t unconfirmed = 0;        // valid data on a path that was not confirmed (frames dropped)
  uint64_t malformed = 0;          // valid tag, frames that break the protocol
  uint64_t peer_closed = 0;        // for a peer that has left or failed
};

struct TrafficCounters {
  uint64_t packets_sealed = 0;          // datagrams sealed, all kinds
  uint64_t bytes_sealed = 0;            // their size on the wire (UDP payload)
  uint64_t packets_opened = 0;          // datagrams whose tag verified
  uint64_t bytes_opened = 0;            // their size on the wire
  uint64_t message_bytes_sent = 0;      // payload put into DATA frames, resends included
  uint64_t message_bytes_received = 0;  // payload accepted once
  uint64_t packets_lost = 0;            // declared lost
  uint64_t fragments_resent = 0;        // DATA fragments sent again, for whatever reason
  uint64_t bytes_resent = 0;            // their payload
  uint64_t spurious_losses = 0;         // declared lost, then acknowledged
  uint64_t duplicate_fragments = 0;     // payload that had arrived before
  uint64_t tail_probes = 0;             // silent paths that were asked, before any timeout
  uint64_t probe_timeouts = 0;          // PTOs that fired
  uint64_t paths_suspected = 0;         // times a path became suspect
  uint64_t epochs_begun = 0;            // times a link moved to fresh keys
  uint64_t acks_sent = 0;               // ACK frames
  uint64_t ce_received = 0;             // packets that arrived marked CE
  uint64_t unexpected_messages = 0;     // arrived before their receive was posted
};

// The counters are plain structs of uint64_t: added as arrays, so that no new one is forgotten.
template <typename Counters>
void add_counters(Counters& total, const Counters& part) {
  using Array = std::array<uint64_t, sizeof(Counters) / sizeof(uint64_t)>;
  auto sum = std::bit_cast<Array>(total);
  const auto added = std::bit_cast<Array>(part);
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += added[i];
  total = std::bit_cast<Counters>(sum);
}

}  // namespace securefabric::transport
