#include "transport/path.h"

#include <algorithm>

namespace securefabric::transport {

const char* path_state_name(PathState state) {
  switch (state) {
    case PathState::kValidating: return "validating";
    case PathState::kActive: return "active";
    case PathState::kAvoided: return "avoided";
    case PathState::kSuspect: return "suspect";
  }
  return "unknown";
}

void SendingPath::avoid(base::Instant now) {
  avoided_until = now + rtt.srtt();
}

bool SendingPath::is_paced() const {
  return congestion.window() < kPacedPackets * std::min(mtu.mtu(), kDatagramBytesJumbo);
}

base::Instant SendingPath::probe_deadline() const {
  if (!sent.has_eliciting_in_flight()) return base::Instant::never();
  const base::Instant since =
      probe_count == 0 ? sent.silent_since() : std::max(sent.silent_since(), asked_at);
  if (probe_count == 0) {
    return since + rtt.tail_probe() + (asked_for_ack ? base::Duration() : kAckDelayMax);
  }
  if (probe_count == 1) return since + rtt.tail_probe();
  const auto doublings = std::min<uint32_t>(probe_count - 2, 10);
  return since + base::shorter(rtt.pto() * (int64_t{1} << doublings), kPtoMax);
}

void SendingPath::on_sample(base::Duration sample, base::Duration host_delay, base::Instant now) {
  if (now - measured_at >= kDelayKept) rtt.grow_old();
  measured_at = now;
  rtt.on_sample(sample, host_delay);
}

void SendingPath::on_sent(uint64_t bytes, base::Instant now) {
  congestion.on_sent(bytes, now);
  bytes_unasked += bytes;
  if (!is_paced()) return;
  const auto window = static_cast<int64_t>(congestion.window());
  paused_until = now + rtt.srtt() * static_cast<int64_t>(bytes) / window;
}

bool SendingPath::has_room(base::Instant now) const {
  if (sent.is_full()) return false;
  if (is_paced()) {
    return now >= paused_until && (congestion.in_flight() == 0 || congestion.room() > 0);
  }
  return congestion.in_flight() == 0 || congestion.room() >= least_room();
}

bool SendingPath::wants_ack_of_next(uint64_t bytes) const {
  if (congestion.room() < bytes + least_room()) return true;
  const bool may_limit = congestion.in_flight() + bytes > congestion.window() / 2;
  return may_limit && bytes_unasked + bytes >= congestion.window() / kAcksPerWindow;
}

uint64_t SendingPath::least_room() const {
  const uint64_t most = std::max(mtu.mtu(), kDatagramBytesJumbo);
  return std::clamp<uint64_t>(congestion.window() / 4, mtu.mtu(), most);
}

base::Instant SendingPath::room_at(base::Instant now) const {
  const bool is_paused = is_paced() && paused_until > now && congestion.room() > 0;
  return is_paused ? paused_until : base::Instant::never();
}

size_t SendingPath::burst_bytes_max() const {
  return std::clamp<size_t>(congestion.window() / 4, kDatagramBytesJumbo, kBurstBytesMax);
}

void SendingPath::on_challenge_sent(Challenge challenge, base::Duration interval_max) {
  std::shift_right(challenges.begin(), challenges.end(), 1);
  challenges.front() = challenge;
  next_challenge_at = challenge.sent_at + challenge_interval;
  challenge_interval = base::shorter(challenge_interval * 2, interval_max);
  if (!has_answered()) ++tries;
}

std::optional<base::Instant> SendingPath::on_echo(uint64_t value) {
  if (value == 0) return std::nullopt;
  for (const Challenge& challenge : challenges) {
    if (challenge.value != value) continue;
    const base::Instant sent_at = challenge.sent_at;
    forget_challenges();
    return sent_at;
  }
  return std::nullopt;
}

}  // namespace securefabric::transport
