// One direction of one network path as a model: what happens to a datagram between two sockets.
//
//   send ─► mtu ─► blackhole ─► queue (rate, tail drop, CE mark) ─► loss ─► corruption
//        ─► latency, jitter, reordering ─► one or two deliveries
//
// Everything random comes from the link's own seed, so what happens on one link does not depend on
// the traffic of another. Not modelled: paths that share a bottleneck (each link has its own rate
// and queue), routes that change, fragmentation by IP, the cost of the host's CPU, clock drift.
#pragma once

#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "base/random.h"
#include "base/time.h"

namespace securefabric::sim {

// Probabilities are in [0, 1] and drawn per datagram.
struct LinkOptions {
  base::Duration latency = base::Duration::micros(50);  // one way; more than 0
  base::Duration jitter;               // uniform extra delay up to this; order is kept
  uint64_t rate_bits_per_second = 0;   // 0: infinitely fast, and no queue
  uint64_t queue_bytes_max = 4 << 20;  // what waits for the rate; more is dropped
  uint64_t mark_above_bytes = 0;  // queue length from which on datagrams are marked CE; 0: none
  double loss = 0;                // the datagram vanishes
  base::Duration loss_burst;      // what is sent within this time after a loss is lost as well
  double reorder = 0;             // held back by reorder_delay, so that later ones overtake
  base::Duration reorder_delay = base::Duration::micros(500);
  double duplicate = 0;       // delivered twice, the second time after reorder_delay
  double corrupt = 0;         // one bit flipped, or cut short
  size_t mtu_bytes = 65'535;  // larger datagrams vanish
  bool is_blackhole = false;  // nothing passes
};

// Datagrams by fate; a datagram counts under `sent` and under whatever befell it.
struct LinkCounters {
  uint64_t sent = 0;           // handed to the link
  uint64_t delivered = 0;      // arrivals, duplicates included
  uint64_t lost = 0;           // by chance
  uint64_t blackholed = 0;     // while the switch was on
  uint64_t queue_dropped = 0;  // the queue was full
  uint64_t mtu_dropped = 0;    // too large
  uint64_t reordered = 0;      // held back
  uint64_t duplicated = 0;     // delivered twice
  uint64_t corrupted = 0;      // damaged
  uint64_t marked = 0;         // CE

  void add(const LinkCounters& other);
};

struct Delivery {
  base::Instant at;            // when it arrives
  bool is_marked_ce = false;   // congestion experienced
  std::vector<uint8_t> bytes;  // perhaps damaged
};

class Link {
 public:
  Link(const LinkOptions& options, uint64_t seed) : options_(options), random_(seed) {}

  // May be changed at any time; holds for the datagrams sent from then on.
  LinkOptions& options() { return options_; }
  const LinkCounters& counters() const { return counters_; }

  // Appends the arrivals of one datagram, none to two, to `out`. `now` never decreases.
  void send(base::Instant now, base::Bytes datagram, std::vector<Delivery>& out);

 private:
  bool is_lost(base::Instant now);
  // When the last bit has left the queue; never when the queue is full.
  base::Instant leave_queue(base::Instant now, size_t bytes, bool& is_marked_ce);
  void corrupt(std::vector<uint8_t>& bytes);

  LinkOptions options_;
  base::Random random_;  // of this link alone
  LinkCounters counters_;
  base::Instant free_at_;       // when the queue will be empty
  base::Instant last_arrival_;  // jitter does not overtake
  base::Instant lossy_until_;   // end of the burst of losses that goes on
};

}  // namespace securefabric::sim
