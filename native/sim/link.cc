#include "sim/link.h"

#include <algorithm>

#include "base/check.h"

namespace securefabric::sim {

using base::Duration;
using base::Instant;

void LinkCounters::add(const LinkCounters& other) {
  sent += other.sent;
  delivered += other.delivered;
  lost += other.lost;
  blackholed += other.blackholed;
  queue_dropped += other.queue_dropped;
  mtu_dropped += other.mtu_dropped;
  reordered += other.reordered;
  duplicated += other.duplicated;
  corrupted += other.corrupted;
  marked += other.marked;
}

void Link::send(Instant now, base::Bytes datagram, std::vector<Delivery>& out) {
  SF_CHECK(options_.latency > Duration());  // or virtual time could stand still
  ++counters_.sent;
  if (datagram.size() > options_.mtu_bytes) {
    ++counters_.mtu_dropped;
    return;
  }
  if (options_.is_blackhole) {
    ++counters_.blackholed;
    return;
  }
  Delivery delivery{now, false, base::to_vector(datagram)};
  const Instant left_at = leave_queue(now, datagram.size(), delivery.is_marked_ce);
  if (left_at.is_never()) {
    ++counters_.queue_dropped;
    return;
  }
  if (is_lost(now)) {
    ++counters_.lost;
    return;
  }
  if (random_.chance(options_.corrupt)) corrupt(delivery.bytes);

  const auto jitter = static_cast<uint64_t>(options_.jitter.nanos());
  const Duration extra = Duration::nanos(static_cast<int64_t>(random_.below(jitter + 1)));
  delivery.at = std::max(left_at + options_.latency + extra, last_arrival_);
  last_arrival_ = delivery.at;
  if (random_.chance(options_.reorder)) {
    ++counters_.reordered;
    delivery.at = delivery.at + options_.reorder_delay;
  }
  const bool is_duplicate = random_.chance(options_.duplicate);
  counters_.delivered += is_duplicate ? 2 : 1;
  out.push_back(delivery);
  if (!is_duplicate) return;
  ++counters_.duplicated;
  delivery.at = delivery.at + options_.reorder_delay;
  out.push_back(std::move(delivery));
}

bool Link::is_lost(Instant now) {
  if (now < lossy_until_) return true;
  if (!random_.chance(options_.loss)) return false;
  lossy_until_ = now + options_.loss_burst;
  return true;
}

Instant Link::leave_queue(Instant now, size_t bytes, bool& is_marked_ce) {
  const uint64_t rate = options_.rate_bits_per_second;
  if (rate == 0) return now;
  constexpr double kNanosPerSecond = 1e9;
  const double nanos_per_byte = 8 * kNanosPerSecond / static_cast<double>(rate);
  const Duration backlog = std::max(free_at_ - now, Duration());
  const double queued_bytes = static_cast<double>(backlog.nanos()) / nanos_per_byte;
  if (queued_bytes + static_cast<double>(bytes) > static_cast<double>(options_.queue_bytes_max)) {
    return Instant::never();
  }
  is_marked_ce = options_.mark_above_bytes > 0 &&
                 queued_bytes >= static_cast<double>(options_.mark_above_bytes);
  if (is_marked_ce) ++counters_.marked;
  const auto sending = Duration::nanos(
      std::max<int64_t>(1, static_cast<int64_t>(nanos_per_byte * static_cast<double>(bytes))));
  free_at_ = std::max(free_at_, now) + sending;
  return free_at_;
}

void Link::corrupt(std::vector<uint8_t>& bytes) {
  ++counters_.corrupted;
  constexpr uint64_t kOneInFourIsCut = 4;
  if (random_.below(kOneInFourIsCut) == 0) {
    bytes.resize(random_.below(bytes.size()));
    return;
  }
  const uint64_t bit = random_.below(bytes.size() * 8);
  bytes[bit / 8] ^= static_cast<uint8_t>(1u << (bit % 8));
}

}  // namespace securefabric::sim
