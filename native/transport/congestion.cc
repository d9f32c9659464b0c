#include "transport/congestion.h"

#include <algorithm>

#include "base/check.h"
#include "transport/limits.h"

namespace securefabric::transport {

CongestionWindow::CongestionWindow()
    : window_(kWindowInitial), slow_start_threshold_(kWindowMax), recovery_started_() {}

void CongestionWindow::on_sent(uint64_t bytes, base::Instant now) {
  in_flight_ += bytes;
  if (in_flight_ + window_ / 4 >= window_) limited_at_ = now;
}

void CongestionWindow::on_acked(uint64_t bytes, base::Instant sent_at) {
  SF_CHECK(bytes <= in_flight_);
  in_flight_ -= bytes;
  if (sent_at > limited_at_ || sent_at < recovery_started_) return;
  if (window_ < slow_start_threshold_) {
    window_ += bytes;
  } else {
    acked_since_growth_ += bytes;
    if (acked_since_growth_ >= window_) {
      acked_since_growth_ = 0;
      window_ += 4 * kDatagramBytesMax;
    }
  }
  window_ = std::min(window_, kWindowMax);
}

void CongestionWindow::on_lost(uint64_t bytes, base::Instant sent_at, base::Instant now) {
  on_discarded(bytes);
  if (sent_at < recovery_started_) return;
  recovery_started_ = now;
  window_ = std::max(window_ * 7 / 10, kWindowMin);
  slow_start_threshold_ = window_;
  acked_since_growth_ = 0;
}

void CongestionWindow::on_persistent_loss() {
  // Repeated timeouts of one outage must not lower the threshold to nothing (RFC 5681 §3.1).
  if (window_ == kWindowMin) return;
  slow_start_threshold_ = std::max(window_ / 2, kWindowMin);
  window_ = kWindowMin;
}

void CongestionWindow::on_discarded(uint64_t bytes) {
  SF_CHECK(bytes <= in_flight_);
  in_flight_ -= bytes;
}

}  // namespace securefabric::transport
