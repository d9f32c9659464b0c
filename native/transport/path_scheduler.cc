#include "transport/path_scheduler.h"

#include <algorithm>
#include <utility>

namespace securefabric::transport {

using base::Duration;
using base::Instant;

namespace {

bool can_carry(const SendingPath& path) {
  return path.is_in_use && path.is_active() && path.has_room();
}

// How long the next burst would take here: in proportion to the delay and to how full the window
// is.
uint64_t cost(const SendingPath& path) {
  const auto delay_us = static_cast<uint64_t>(path.rtt.delay().micros()) + 1;
  const uint64_t filled = path.congestion.in_flight() + kDatagramBytesMax;
  return delay_us * filled * 16 / path.congestion.window();
}

// What delays more would hold up the end of what is left to send. Paths that are being asked are
// not counted on.
Duration worthwhile_delay(PathScheduler::Paths paths, const SendQueue& sends) {
  Duration fastest = Duration::forever();
  Duration slowest;
  for (const auto& path : paths) {
    if (!path->is_in_use || !path->is_active() || path->probe_count > 0) continue;
    fastest = base::shorter(fastest, path->rtt.delay());
    slowest = base::longer(slowest, path->rtt.delay());
  }
  if (slowest < fastest) return Duration::forever();  // there is none
  const Duration alike = fastest * 2 + kQueueingDelayTarget;
  if (slowest <= alike) return alike;
  uint64_t bytes_per_ms = 0;
  for (const auto& path : paths) {
    if (!path->is_in_use || !path->is_active() || path->probe_count > 0) continue;
    if (path->rtt.delay() > alike) continue;
    bytes_per_ms += path->congestion.window() * 1000 / (path->rtt.delay().micros() + 1);
  }
  const uint64_t enough = bytes_per_ms * (slowest.micros() + 1) / 1000;
  const uint64_t us_left = sends.sendable_bytes(enough) * 1000 / bytes_per_ms;
  return base::longer(alike, Duration::micros(static_cast<int64_t>(us_left)));
}

}  // namespace

SendingPath* PathScheduler::pick(Paths paths, const SendQueue& sends, base::Random& random,
                                 Instant now) {
  if (is_blind_) return pick_blindly(paths);
  const bool has_any = std::any_of(paths.begin(), paths.end(), [](const auto& path) {
    return path->is_in_use && path->is_active();
  });
  if (!has_any) add(paths, paths.size());  // those in use have failed
  const Duration delay_max = worthwhile_delay(paths, sends);
  SendingPath* picked = pick_measured(paths, delay_max, random, now, true);
  if (picked == nullptr) picked = pick_measured(paths, delay_max, random, now, false);
  was_limited_ = was_limited_ || picked == nullptr;
  return picked;
}

SendingPath* PathScheduler::pick_blindly(Paths paths) {
  for (size_t i = 0; i < paths.size(); ++i) {
    SendingPath& path = *paths[(next_ + i) % paths.size()];
    if (!can_carry(path)) continue;
    next_ = (next_ + i + 1) % paths.size();
    return &path;
  }
  return nullptr;
}

// `is_strict` leaves out the avoided ones.
SendingPath* PathScheduler::pick_measured(Paths paths, Duration delay_max, base::Random& random,
                                          Instant now, bool is_strict) {
  const auto is_candidate = [&](const SendingPath& path) {
    return can_carry(path) && path.rtt.delay() <= delay_max && !(is_strict && path.is_avoided(now));
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

size_t PathScheduler::review(Paths paths, Instant now) {
  if (is_blind_ || now < last_review_at_ + kReviewInterval) return 0;
  const Instant since = std::exchange(last_review_at_, now);
  size_t used = 0;
  size_t congested = 0;
  size_t clear = 0;  // neither congested nor near it: in one queue, all are of about one delay
  size_t at_floor = 0;
  for (const auto& path : paths) {
    if (!path->is_in_use || !path->is_active()) continue;
    ++used;
    const bool is_congested = path->congested_at > since;
    const bool is_short = path->congestion.queueing_delay() <= path->congestion.target();
    congested += is_congested ? 1 : 0;
    clear += !is_congested && is_short ? 1 : 0;
    at_floor += path->congestion.is_at_floor() ? 1 : 0;
  }
  const bool was_limited = std::exchange(was_limited_, false);
  if (congested > 0 || was_limited) last_trouble_at_ = now;
  if (used == 0) return 0;
  if (clear == 0 && at_floor == used) {
    keep(paths, std::max<size_t>(used / 2, 1));
  } else if (congested > 0 && clear > 0) {
    return add(paths, congested);
  } else if (was_limited && clear == used && used < kPathsOpenedFirst) {
    return add(paths, 1);
  } else if (now - last_trouble_at_ >= kCalmPeriod) {
    keep(paths, kPathsWhenCalm);
  }
  return 0;
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
  const auto used = [&] {
    return static_cast<size_t>(std::count_if(paths.begin(), paths.end(), [](const auto& path) {
      return path->is_in_use && path->is_active();
    }));
  };
  for (size_t left = used(); left > count; --left) {
    SendingPath* slowest = nullptr;
    for (const auto& path : paths) {
      if (!path->is_in_use || !path->is_active()) continue;
      if (slowest == nullptr || path->rtt.delay() >= slowest->rtt.delay()) slowest = path.get();
    }
    slowest->is_in_use = false;
  }
}

}  // namespace securefabric::transport
