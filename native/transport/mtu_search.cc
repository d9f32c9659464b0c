#include "transport/mtu_search.h"

#include <algorithm>

#include "base/check.h"
#include "transport/limits.h"

namespace securefabric::transport {

using base::Instant;

MtuSearch::MtuSearch(size_t ceiling)
    : ceiling_(ceiling), mtu_(kDatagramBytesMin), too_large_(ceiling + 1) {
  SF_CHECK(ceiling >= kDatagramBytesMin);
  if (ceiling_ > mtu_) probe_ = ceiling_;
}

size_t MtuSearch::probe_due(Instant now) const {
  if (is_waiting_) return 0;
  return probe_ == 0 && raise_at_ <= now ? ceiling_ : probe_;
}

Instant MtuSearch::deadline() const {
  return probe_ == 0 ? raise_at_ : Instant::never();
}

void MtuSearch::on_probe_sent() {
  if (probe_ == 0) {
    probe_ = ceiling_;
    too_large_ = ceiling_ + 1;
    losses_ = 0;
    raise_at_ = Instant::never();
  }
  is_waiting_ = true;
}

void MtuSearch::on_probe_acked(size_t bytes, Instant now) {
  if (bytes <= mtu_ || bytes > ceiling_) return;
  mtu_ = bytes;
  large_losses_ = 0;
  if (too_large_ <= mtu_) too_large_ = ceiling_ + 1;  // it only seemed to fail
  if (probe_ > mtu_) return;
  is_waiting_ = false;
  losses_ = 0;
  choose(now);
}

void MtuSearch::on_probe_lost(size_t bytes, Instant now) {
  if (bytes != probe_) return;
  is_waiting_ = false;
  if (++losses_ < kMtuProbesMax) return;
  losses_ = 0;
  too_large_ = bytes;
  choose(now);
}

void MtuSearch::choose(Instant now) {
  if (too_large_ > ceiling_) {
    probe_ = mtu_ == ceiling_ ? 0 : ceiling_;
    return;
  }
  if (too_large_ - mtu_ <= kMtuStep) {
    probe_ = 0;
    raise_at_ = now + kMtuRaiseInterval;
  } else if (mtu_ < kMtuEthernet && kMtuEthernet < too_large_) {
    probe_ = kMtuEthernet;
  } else {
    const size_t middle = mtu_ + (too_large_ - mtu_) / 2;
    probe_ = std::max(middle - middle % kFragmentAlignment, mtu_ + 1);
  }
}

void MtuSearch::on_acked(size_t bytes) {
  if (bytes > kDatagramBytesMin) large_losses_ = 0;
}

void MtuSearch::on_lost(size_t bytes) {
  if (bytes <= kDatagramBytesMin) return;
  if (++large_losses_ >= kMtuBlackHoleLosses) restart();
}

void MtuSearch::restart() {
  if (ceiling_ == kDatagramBytesMin) return;
  probe_ = mtu_ > kDatagramBytesMin ? mtu_ : ceiling_;
  mtu_ = kDatagramBytesMin;
  too_large_ = ceiling_ + 1;
  is_waiting_ = false;
  losses_ = large_losses_ = 0;
  raise_at_ = Instant::never();
}

}  // namespace securefabric::transport
