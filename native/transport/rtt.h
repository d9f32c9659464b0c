// Round-trip time of one path: RFC 9002 §5, with the clock as an argument.
#pragma once

#include "base/time.h"

namespace securefabric::transport {

class RttEstimator {
 public:
  // `sample` is from sending to the ack's arrival; `ack_delay` is what the receiver says it waited.
  void on_sample(base::Duration sample, base::Duration ack_delay);

  bool has_sample() const { return has_sample_; }
  base::Duration latest() const { return latest_; }
  base::Duration srtt() const { return srtt_; }
  base::Duration rttvar() const { return rttvar_; }
  base::Duration min_rtt() const { return min_rtt_; }
  // The probe timeout without back-off.
  base::Duration pto() const;
  // How long after its sending a packet may still be overtaken by later ones of its path.
  base::Duration loss_delay() const;

 private:
  bool has_sample_ = false;
  base::Duration latest_;
  base::Duration srtt_;
  base::Duration rttvar_;
  base::Duration min_rtt_;
};

}  // namespace securefabric::transport
