#include "transport/credit_pool.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "transport/limits.h"

namespace securefabric::transport {

using base::Instant;
using base::Rank;

void CreditPool::add(Rank peer) {
  peers_.try_emplace(peer);
}

void CreditPool::remove(Rank peer) {
  const auto at = peers_.find(peer);
  if (at == peers_.end()) return;
  active_ -= at->second.is_active ? 1 : 0;
  peers_.erase(at);
}

bool CreditPool::on_activity(Rank peer, Instant now) {
  const auto at = peers_.find(peer);
  if (at == peers_.end()) return false;
  at->second.active_until = now + kPeerActivePeriod;
  const bool is_new = !std::exchange(at->second.is_active, true);
  active_ += is_new ? 1 : 0;
  return expire(now) || is_new;
}

bool CreditPool::expire(Instant now) {
  if (now < next_expiry_at_) return false;
  next_expiry_at_ = now + kPeerActivePeriod;
  const size_t before = active_;
  for (auto& [rank, peer] : peers_) {
    if (!peer.is_active || peer.active_until > now) continue;
    peer.is_active = false;
    --active_;
  }
  return active_ != before;
}

// Half of the budget for all, whether they send or not.
uint64_t CreditPool::floor() const {
  return std::clamp(budget_ / (2 * std::max<size_t>(peers_.size(), 1)), kPeerWindowMin,
                    kPeerWindowIdle);
}

uint64_t CreditPool::window_of(Rank peer) const {
  const auto at = peers_.find(peer);
  SF_CHECK(at != peers_.end());
  if (!at->second.is_active) return floor();
  const uint64_t reserved = floor() * (peers_.size() - active_);
  const uint64_t left = budget_ > reserved ? budget_ - reserved : 0;
  return std::max(left / active_, kPeerWindowMin);
}

}  // namespace securefabric::transport
