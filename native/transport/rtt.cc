#include "transport/rtt.h"

#include <utility>

#include "transport/limits.h"

namespace securefabric::transport {

using base::Duration;

void RttEstimator::on_sample(Duration sample, Duration host_delay) {
  const bool is_plausible = host_delay > Duration() && host_delay < sample;
  latest_ = sample;
  latest_delay_ = is_plausible ? sample - host_delay : sample;
  const bool starts_over = std::exchange(is_old_, false) && sample < srtt_;
  if (!has_sample_ || starts_over) {
    delay_ = has_sample_ ? base::shorter(delay_, latest_delay_) : latest_delay_;
    min_rtt_ = has_sample_ ? base::shorter(min_rtt_, sample) : sample;
    srtt_ = sample;
    rttvar_ = sample / 2;
    has_sample_ = true;
    return;
  }
  min_rtt_ = base::shorter(min_rtt_, sample);
  const Duration deviation = srtt_ > sample ? srtt_ - sample : sample - srtt_;
  rttvar_ = (rttvar_ * 3 + deviation) / 4;
  srtt_ = (srtt_ * 7 + sample) / 8;
  delay_ = (delay_ * 7 + latest_delay_) / 8;
  if (++samples_in_order_ < kReorderingMemory) return;
  samples_in_order_ = 0;
  reordering_ = reordering_ / 2;
}

void RttEstimator::on_spurious_loss(Duration age) {
  samples_in_order_ = 0;
  const Duration needed = (age - loss_delay_in_order()) * 5 / 4;
  reordering_ = base::shorter(base::longer(reordering_, needed), kReorderingMax);
}

Duration RttEstimator::tail_probe() const {
  if (!has_sample_) return kInitialRtt * 2;
  return base::shorter(base::longer(srtt_ * 3 / 2, srtt_ + rttvar_ * 4), kPtoMax);
}

Duration RttEstimator::pto() const {
  if (!has_sample_) return base::longer(kInitialRtt * 2, kPtoMin);
  const Duration timeout = srtt_ + rttvar_ * 4 + kAckDelayMax;
  return base::shorter(base::longer(timeout, kPtoMin), kPtoMax);
}

Duration RttEstimator::loss_delay_in_order() const {
  const Duration rtt = has_sample_ ? base::longer(latest_, srtt_) : kInitialRtt;
  return rtt + base::longer(rtt / 4, kReorderingMin);
}

Duration RttEstimator::loss_delay() const {
  return loss_delay_in_order() + reordering_;
}

}  // namespace securefabric::transport
