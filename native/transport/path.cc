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

base::Instant SendingPath::probe_deadline() const {
  if (!sent.has_eliciting_in_flight()) return base::Instant::never();
  const base::Instant since =
      probe_count == 0 ? sent.silent_since() : std::max(sent.silent_since(), asked_at);
  if (probe_count == 0) return since + rtt.tail_probe();
  if (probe_count == 1) return since + rtt.tail_probe() - kAckDelayMax;  // a PING is acked at once
  const auto doublings = std::min<uint32_t>(probe_count - 2, 10);
  return since + base::shorter(rtt.pto() * (int64_t{1} << doublings), kPtoMax);
}

bool SendingPath::has_room() const {
  if (sent.is_full()) return false;
  return congestion.in_flight() == 0 || congestion.room() >= kDatagramBytesMax;
}

size_t SendingPath::burst_bytes_max() const {
  return std::clamp<size_t>(congestion.window() / 4, kDatagramBytesMax, kBurstBytesMax);
}

void SendingPath::on_challenge_sent(Challenge challenge) {
  std::shift_right(challenges.begin(), challenges.end(), 1);
  challenges.front() = challenge;
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
