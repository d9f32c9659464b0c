// One direction of one wire, with the queue in front of it: what happens to a datagram there.
//
//   send ─► mtu ─► blackhole ─► queue (rate, tail drop, CE mark) ─► loss ─► corruption
//        ─► latency, jitter, reordering ─► one or two deliveries
//
// Everything random comes from the link's own seed, so what happens on one link does not depend on
// the traffic of another. Which links a datagram crosses is sim/network.h. Not modelled:
// fragmentation by IP, queues with priorities.
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
  // Losses in bursts as Gilbert and Elliott model them: a link is in a good or a bad state, and
  // may change it before each datagram. In the good one `loss` holds, in the bad one bad_loss.
  double bad_begin = 0;  // from good to bad
  double bad_end = 0.1;  // from bad to good: one in the mean length of a burst, in datagrams
  double bad_loss = 1;   // while bad
  double reorder = 0;    // held back by reorder_delay, so that later ones overtake
  base::Duration reorder_delay = base::Duration::micros(500);
  double duplicate = 0;       // delivered twice, the second time after reorder_delay
  double corrupt = 0;         // one bit flipped
  double truncate = 0;        // cut short, perhaps to nothing
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
  uint64_t corrupted = 0;      // a bit flipped
  uint64_t truncated = 0;      // cut short
  uint64_t marked = 0;         // CE
  uint64_t bytes = 0;          // of the datagrams that left the queue

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
  void send(base::Instant now, std::vector<uint8_t> datagram, std::vector<Delivery>& out);
  // Bytes that wait for the rate or are being sent.
  uint64_t queued_bytes(base::Instant now) const;

 private:
  bool is_lost(base::Instant now);
  // When the last bit has left the queue; never when the queue is full.
  base::Instant leave_queue(base::Instant now, size_t bytes, bool& is_marked_ce);
  void damage(std::vector<uint8_t>& bytes);

  LinkOptions options_;
  base::Random random_;  // of this link alone
  LinkCounters counters_;
  base::Instant free_at_;       // when the queue will be empty
  base::Instant last_arrival_;  // jitter does not overtake
  base::Instant lossy_until_;   // end of the loss_burst that goes on
  bool is_bad_ = false;         // the state of Gilbert and Elliott
};

}  // namespace securefabric::sim
