#include "transport/congestion.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "transport/limits.h"

namespace securefabric::transport {

using base::Duration;
using base::Instant;

namespace {

constexpr uint32_t kOne = 1 << 16;  // a share of 1

// Moves a smoothed share by 1/2^gain towards what one packet says.
void smooth(uint32_t& share, bool is_set, unsigned gain) {
  share -= share >> gain;
  if (is_set) share += kOne >> gain;
}

}  // namespace

CongestionWindow::CongestionWindow(bool heeds_delay)
    : heeds_delay_(heeds_delay), window_(kWindowInitial), slow_start_threshold_(kWindowMax) {}

void CongestionWindow::on_packet_bytes(uint64_t bytes) {
  if (slow_start_threshold_ == kWindowMax) window_ = std::max(window_, kPacedPackets * bytes);
}

void CongestionWindow::on_sent(uint64_t bytes, Instant now) {
  in_flight_ += bytes;
  if (in_flight_ + std::max(window_ / 4, bytes) >= window_) limited_at_ = now;
}

Duration CongestionWindow::target() const {
  const double share = static_cast<double>(kWindowOfTarget) / static_cast<double>(window_);
  const double target_ns =
      static_cast<double>(kQueueingDelayTarget.nanos()) * std::sqrt(std::max(1.0, share));
  return base::longer(base_, Duration::nanos(static_cast<int64_t>(target_ns)));
}

// The least delay is forgotten after one to two periods, since routes change.
void CongestionWindow::update_base(Duration delay, Instant now) {
  if (now - period_began_at_ >= kBaseDelayPeriod) {
    base_ = base_of_period_ > Duration() ? base_of_period_ : delay;
    base_of_period_ = Duration();
    period_began_at_ = now;
  }
  base_of_period_ = base_of_period_ > Duration() ? base::shorter(base_of_period_, delay) : delay;
  base_ = base_ > Duration() ? base::shorter(base_, delay) : delay;
}

bool CongestionWindow::decrease(uint64_t window, Instant sent_at, Instant now) {
  if (sent_at < decreased_at_) return false;
  decreased_at_ = now;
  window_ = std::max(window, kWindowMin);
  slow_start_threshold_ = window_;
  acked_since_growth_ = 0;
  window_before_loss_ = 0;
  return true;
}

void CongestionWindow::on_delay(Duration delay, Instant sent_at, Instant now) {
  if (!heeds_delay_) return;
  update_base(delay, now);
  queueing_ = delay - base_;
  is_congested_ = queueing_ > target() * 2;
  if (queueing_ <= target()) return;
  // A shift keeps the product of bytes and nanoseconds inside 64 bits.
  const auto excess = static_cast<uint64_t>((queueing_ - target()).nanos()) >> 8;
  const auto whole = (static_cast<uint64_t>(delay.nanos()) >> 8) + 1;
  const uint64_t cut = std::min(window_ * excess / whole * 4 / 5, window_ / 2);
  decrease(window_ - cut, sent_at, now);
}

void CongestionWindow::on_marked(uint64_t marked, uint64_t acked, Instant sent_at, Instant now) {
  if (!heeds_delay_) return;
  constexpr unsigned kGain = 4;  // RFC 8257 §3.3, per packet instead of per round trip
  for (uint64_t i = 0; i < std::min(std::max(marked, acked), kAckEveryPackets); ++i) {
    smooth(marked_share_, i < marked, kGain);
  }
  if (marked == 0) return;
  is_congested_ = true;
  decrease(window_ - window_ * marked_share_ / (2 * kOne), sent_at, now);
}

void CongestionWindow::on_acked(uint64_t bytes, Instant sent_at) {
  SF_CHECK(bytes <= in_flight_);
  in_flight_ -= bytes;
  smooth(loss_share_, false, kLossShareGain);
  if (sent_at > limited_at_ || sent_at < decreased_at_ || queueing_ > target()) return;
  if (window_ < slow_start_threshold_) {
    window_ += bytes;
  } else {
    acked_since_growth_ += bytes;
    if (acked_since_growth_ >= window_) {
      acked_since_growth_ = 0;
      window_ += std::min(kWindowStep, window_);
    }
  }
  window_ = std::min(window_, kWindowMax);
}

void CongestionWindow::on_lost(uint64_t bytes, Instant sent_at, Instant now) {
  on_discarded(bytes);
  smooth(loss_share_, true, kLossShareGain);
  if (window_before_loss_ > 0) {
    ++losses_to_refute_;
    first_lost_sent_at_ = base::earlier(first_lost_sent_at_, sent_at);
  }
  const bool is_congestion =
      !heeds_delay_ || queueing_ > target() || loss_share_ > kLossShareTolerated;
  const uint64_t before = window_;
  // Where packets are lost without a queue, smaller windows would not help.
  const uint64_t floor = queueing_ > target() ? kWindowMin : std::min(window_, kWindowRestart);
  const uint64_t lowered = std::max(window_ * 7 / 10, floor);
  if (!is_congestion || !decrease(lowered, sent_at, now)) return;
  window_before_loss_ = before;
  losses_to_refute_ = 1;
  first_lost_sent_at_ = sent_at;
}

void CongestionWindow::on_spurious_loss(Instant sent_at) {
  smooth(loss_share_, false, kLossShareGain);
  if (window_before_loss_ == 0 || sent_at < first_lost_sent_at_) return;
  if (--losses_to_refute_ > 0) return;
  window_ = std::max(window_, window_before_loss_);
  slow_start_threshold_ = window_;
  window_before_loss_ = 0;
}

void CongestionWindow::on_persistent_loss() {
  // Repeated timeouts of one outage must not lower the threshold to nothing (RFC 5681 §3.1).
  if (window_ == kWindowRestart) return;
  slow_start_threshold_ = std::max(window_ / 2, kWindowRestart);
  window_ = kWindowRestart;
  window_before_loss_ = 0;
}

void CongestionWindow::on_discarded(uint64_t bytes) {
  SF_CHECK(bytes <= in_flight_);
  in_flight_ -= bytes;
}

}  // namespace securefabric::transport
