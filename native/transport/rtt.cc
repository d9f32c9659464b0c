#include "transport/rtt.h"

#include "transport/limits.h"

namespace securefabric::transport {

using base::Duration;

void RttEstimator::on_sample(Duration sample, Duration ack_delay) {
  latest_ = sample;
  if (!has_sample_) {
    has_sample_ = true;
    min_rtt_ = srtt_ = sample;
    rttvar_ = sample / 2;
    return;
  }
  min_rtt_ = base::shorter(min_rtt_, sample);
  // The receiver's wait is not the path's; but never believe it below the minimum.
  const Duration adjusted = sample - ack_delay >= min_rtt_ ? sample - ack_delay : sample;
  const Duration deviation = srtt_ > adjusted ? srtt_ - adjusted : adjusted - srtt_;
  rttvar_ = (rttvar_ * 3 + deviation) / 4;
  srtt_ = (srtt_ * 7 + adjusted) / 8;
}

Duration RttEstimator::pto() const {
  if (!has_sample_) return kInitialRtt * 2;
  const Duration timeout = srtt_ + rttvar_ * 4 + kAckDelayMax;
  return base::shorter(base::longer(timeout, kPtoMin), kPtoMax);
}

Duration RttEstimator::loss_delay() const {
  const Duration rtt = has_sample_ ? base::longer(latest_, srtt_) : kInitialRtt;
  // RFC 9002 has 9/8; a quarter leaves room for a receiver that was descheduled for a moment.
  return base::longer(rtt + rtt / 4, Duration::millis(1));
}

}  // namespace securefabric::transport
