// Round-trip time of one path: RFC 9002 §5, with the clock as an argument.
//
// Two things are kept apart. The round trip as the sender lives it includes the time that either
// host was busy; timers follow it. The delay of the network alone (less what the receiver says it
// held the packet, and what the ack waited here) tells congestion and compares paths.
#pragma once

#include "base/time.h"

namespace securefabric::transport {

class RttEstimator {
 public:
  // `sample` is from sending to the handling of the ack; `host_delay` is the part of it that the
  // packet and its ack waited in the two hosts. It may come from a peer that errs.
  void on_sample(base::Duration sample, base::Duration host_delay);
  // What was measured is old: a next sample that is shorter is not averaged with it.
  void grow_old() { is_old_ = true; }
  // A packet was called lost and is acknowledged now, this long after it was sent: the path
  // reorders more than was thought.
  void on_spurious_loss(base::Duration age);

  bool has_sample() const { return has_sample_; }
  base::Duration latest() const { return latest_; }
  base::Duration srtt() const { return srtt_; }
  base::Duration rttvar() const { return rttvar_; }
  base::Duration min_rtt() const { return min_rtt_; }
  // Of the network, in the newest sample and smoothed.
  base::Duration latest_delay() const { return latest_delay_; }
  base::Duration delay() const { return delay_; }
  // How long a path that owes an ack is silent before it is asked, and after that before it is
  // judged.
  base::Duration tail_probe() const;
  // The probe timeout without back-off.
  base::Duration pto() const;
  // How long after its sending a packet may still be overtaken by later ones of its path.
  base::Duration loss_delay() const;

 private:
  base::Duration loss_delay_in_order() const;

  bool has_sample_ = false;
  base::Duration latest_;
  base::Duration srtt_;
  base::Duration rttvar_;
  base::Duration min_rtt_;
  base::Duration latest_delay_;
  base::Duration delay_;
  bool is_old_ = false;        // see grow_old()
  base::Duration reordering_;  // what late packets have shown to be needed on top of a quarter
  int samples_in_order_ = 0;   // since reordering_ last changed
};

}  // namespace securefabric::transport
