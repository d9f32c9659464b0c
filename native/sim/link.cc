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
  truncated += other.truncated;
  bytes += other.bytes;
  marked += other.marked;
}

void Link::send(Instant now, std::vector<uint8_t> datagram, std::vector<Delivery>& out) {
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
  Delivery delivery{now, false, std::move(datagram)};
  const Instant left_at = leave_queue(now, delivery.bytes.size(), delivery.is_marked_ce);
  if (left_at.is_never()) {
    ++counters_.queue_dropped;
    return;
  }
  counters_.bytes += delivery.bytes.size();
  if (is_lost(now)) {
    ++counters_.lost;
    return;
  }
  damage(delivery.bytes);

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
  if (is_duplicate) {
    ++counters_.duplicated;
    out.push_back(delivery);
    delivery.at = delivery.at + options_.reorder_delay;
  }
  out.push_back(std::move(delivery));
}

bool Link::is_lost(Instant now) {
  if (now < lossy_until_) return true;
  is_bad_ = is_bad_ ? !random_.chance(options_.bad_end) : random_.chance(options_.bad_begin);
  if (!random_.chance(is_bad_ ? options_.bad_loss : options_.loss)) return false;
  lossy_until_ = now + options_.loss_burst;
  return true;
}

namespace {

double nanos_per_byte(const LinkOptions& options) {
  constexpr double kNanosPerSecond = 1e9;
  return 8 * kNanosPerSecond / static_cast<double>(options.rate_bits_per_second);
}

}  // namespace

uint64_t Link::queued_bytes(Instant now) const {
  if (options_.rate_bits_per_second == 0 || free_at_ <= now) return 0;
  return static_cast<uint64_t>(static_cast<double>((free_at_ - now).nanos()) /
                               nanos_per_byte(options_));
}

// A new rate holds for what is sent from then on: what was admitted leaves when it was promised to.
Instant Link::leave_queue(Instant now, size_t bytes, bool& is_marked_ce) {
  if (options_.rate_bits_per_second == 0) return now;
  const uint64_t queued = queued_bytes(now);
  if (queued + bytes > options_.queue_bytes_max) return Instant::never();
  is_marked_ce = options_.mark_above_bytes > 0 && queued >= options_.mark_above_bytes;
  if (is_marked_ce) ++counters_.marked;
  const auto sending = static_cast<int64_t>(nanos_per_byte(options_) * static_cast<double>(bytes));
  free_at_ = std::max(free_at_, now) + Duration::nanos(std::max<int64_t>(1, sending));
  return free_at_;
}

void Link::damage(std::vector<uint8_t>& bytes) {
  if (random_.chance(options_.truncate)) {
    ++counters_.truncated;
    bytes.resize(random_.below(bytes.size()));
  }
  if (random_.chance(options_.corrupt) && !bytes.empty()) {
    ++counters_.corrupted;
    const uint64_t bit = random_.below(bytes.size() * 8);
    bytes[bit / 8] ^= static_cast<uint8_t>(1u << (bit % 8));
  }
}

}  // namespace securefabric::sim
