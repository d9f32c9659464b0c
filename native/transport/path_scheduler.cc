#include "transport/path_scheduler.h"

#include <algorithm>
#include <utility>

namespace securefabric::transport {

using base::Duration;
using base::Instant;

namespace {

bool is_used(const std::unique_ptr<SendingPath>& path) {
  return path->is_in_use && path->is_active();
}

bool can_carry(const SendingPath& path, Instant now) {
  return path.is_in_use && path.is_active() && path.has_room(now);
}

// How long the next burst would take here: in proportion to the delay and to how full the window
// is.
uint64_t cost(const SendingPath& path) {
  const auto delay_us = static_cast<uint64_t>(path.rtt.delay().micros()) + 1;
  const uint64_t filled = path.congestion.in_flight() + kDatagramBytesJumbo;
  return delay_us * filled * 16 / path.congestion.window();
}

// Paths that are being asked are not counted on.
bool is_counted_on(const SendingPath& path) {
  return path.is_in_use && path.is_active() && path.probe_count == 0;
}

// Of the paths that are counted on; `least` is above `most` when there is none.
struct Delays {
  Duration least = Duration::forever();
  Duration most;
};

Delays delays_of(PathScheduler::Paths paths) {
  Delays delays;
  for (const auto& path : paths) {
    if (!is_counted_on(*path)) continue;
    delays.least = base::shorter(delays.least, path->rtt.delay());
    delays.most = base::longer(delays.most, path->rtt.delay());
  }
  return delays;
}

// What delays more would hold up the end of what is left to send.
Duration worthwhile_delay(PathScheduler::Paths paths, const Delays& delays,
                          const SendQueue& sends) {
  if (delays.most < delays.least) return Duration::forever();
  const Duration alike = delays.least * 2 + kQueueingDelayTarget;
  if (delays.most <= alike) return alike;
  uint64_t bytes_per_ms = 0;
  for (const auto& path : paths) {
    if (!is_counted_on(*path) || path->rtt.delay() > alike) continue;
    bytes_per_ms += path->congestion.window() * 1000 / (path->rtt.delay().micros() + 1);
  }
  bytes_per_ms = std::max<uint64_t>(bytes_per_ms, 1);  // small windows, delays of seconds
  const uint64_t enough = bytes_per_ms * (delays.most.micros() + 1) / 1000;
  const uint64_t us_left = sends.sendable_bytes(enough) * 1000 / bytes_per_ms;
  return base::longer(alike, Duration::micros(static_cast<int64_t>(us_left)));
}

}  // namespace

SendingPath* PathScheduler::pick(Paths paths, const SendQueue& sends, base::Random& random,
                                 Instant now) {
  if (is_blind_) return pick_blindly(paths, now);
  const Delays delays = delays_of(paths);
  if (may_keep(delays.least, sends, now)) return last_;
  if (std::none_of(paths.begin(), paths.end(), is_used))
    add(paths, paths.size());  // those in use have failed
  const Duration delay_max = worthwhile_delay(paths, delays, sends);
  SendingPath* picked = pick_measured(paths, delay_max, random, now, true);
  if (picked == nullptr) picked = pick_measured(paths, delay_max, random, now, false);
  was_limited_ = was_limited_ || picked == nullptr;
  if (picked != nullptr) last_ = picked;
  return picked;
}

// For one packet, when there is not a queue of others there.
bool PathScheduler::may_keep(Duration fastest, const SendQueue& sends, Instant now) const {
  return last_ != nullptr && can_carry(*last_, now) && !last_->is_avoided(now) &&
         last_->congestion.in_flight() <= kDatagramBytesJumbo &&
         last_->rtt.delay() <= fastest + fastest / 4 + kSameDelay &&
         sends.sendable_bytes(kDatagramBytesJumbo + 1) <= kDatagramBytesJumbo;
}

SendingPath* PathScheduler::pick_blindly(Paths paths, Instant now) {
  for (size_t i = 0; i < paths.size(); ++i) {
    SendingPath& path = *paths[(next_ + i) % paths.size()];
    if (!can_carry(path, now)) continue;
    next_ = (next_ + i + 1) % paths.size();
    return &path;
  }
  return nullptr;
}

// `is_strict` leaves out the avoided ones.
SendingPath* PathScheduler::pick_measured(Paths paths, Duration delay_max, base::Random& random,
                                          Instant now, bool is_strict) {
  const auto is_candidate = [&](const SendingPath& path) {
    return can_carry(path, now) && path.rtt.delay() <= delay_max &&
           !(is_strict && path.is_avoided(now));
  };
  size_t count = 0;
  for (const auto& path : paths) count += is_candidate(*path) ? 1 : 0;
  if (count == 0) return nullptr;
  const size_t first = random.below(count);
  const size_t second = count == 1 ? first : (first + 1 + random.below(count - 1)) % count;
  SendingPath* drawn[2] = {nullptr, nullptr};
  size_t index = 0;
  for (const auto& path : paths) {
    if (!is_candidate(*path)) continue;
    if (index == first) drawn[0] = path.get();
    if (index == second) drawn[1] = path.get();
    ++index;
  }
  return cost(*drawn[1]) < cost(*drawn[0]) ? drawn[1] : drawn[0];  // the draw breaks a tie
}

Instant PathScheduler::room_at(Paths paths, Instant now) const {
  Instant earliest = Instant::never();
  for (const auto& path : paths) {
    if (is_used(path)) earliest = base::earlier(earliest, path->room_at(now));
  }
  return earliest;
}

size_t PathScheduler::review(Paths paths, Instant now) {
  if (is_blind_ || now < last_review_at_ + kReviewInterval) return 0;
  const Instant since = std::exchange(last_review_at_, now);
  size_t used = 0;
  size_t congested = 0;
  size_t clear = 0;  // neither congested nor near it: in one queue, all are of about one delay
  for (const auto& path : paths) {
    if (!is_used(path)) continue;
    ++used;
    const bool is_congested = path->congested_at > since;
    const bool is_short = path->congestion.queueing_delay() <= path->congestion.target();
    congested += is_congested ? 1 : 0;
    clear += !is_congested && is_short ? 1 : 0;
  }
  const bool was_limited = std::exchange(was_limited_, false);
  if (congested > 0 || was_limited) last_trouble_at_ = now;
  if (used == 0) return 0;
  measure_again(paths, now);
  if (congested > 0 && clear > 0) {
    return add(paths, congested);
  } else if (was_limited && clear == used && used < kPathsOpenedFirst) {
    return add(paths, 1);
  } else if (now - last_trouble_at_ >= kCalmPeriod) {
    keep(paths, kPathsWhenCalm);
  }
  return 0;
}

void PathScheduler::measure_again(Paths paths, Instant now) {
  for (const auto& path : paths) {
    if (!is_counted_on(*path) || path->sent.has_eliciting_in_flight()) continue;
    if (now - path->measured_at >= kDelayKept) path->wants_ping = true;
  }
}

size_t PathScheduler::add(Paths paths, size_t count) {
  for (const auto& path : paths) {
    if (count == 0) break;
    if (path->is_in_use || !path->is_for_data) continue;
    path->is_in_use = true;
    --count;
  }
  return count;
}

void PathScheduler::keep(Paths paths, size_t count) {
  auto used = static_cast<size_t>(std::count_if(paths.begin(), paths.end(), is_used));
  for (; used > count; --used) {
    SendingPath* slowest = nullptr;
    for (const auto& path : paths) {
      if (!is_used(path)) continue;
      if (slowest == nullptr || path->rtt.delay() >= slowest->rtt.delay()) slowest = path.get();
    }
    slowest->is_in_use = false;
  }
}

}  // namespace securefabric::transport
