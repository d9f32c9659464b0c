#include "transport/path.h"

#include <algorithm>

namespace securefabric::transport {

const char* path_state_name(PathState state) {
  switch (state) {
    case PathState::kValidating: return "validating";
    case PathState::kActive: return "active";
    case PathState::kSuspect: return "suspect";
  }
  return "unknown";
}

base::Instant SendingPath::pto_deadline() const {
  if (!sent.has_eliciting_in_flight()) return base::Instant::never();
  const base::Duration backed_off = rtt.pto() * (int64_t{1} << std::min<uint32_t>(pto_count, 10));
  return sent.last_eliciting_sent_at() + base::shorter(backed_off, kPtoMax);
}

bool SendingPath::has_room() const {
  if (sent.is_full()) return false;
  return congestion.in_flight() == 0 || congestion.room() >= kDatagramBytesMax;
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
