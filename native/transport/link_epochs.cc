#include "transport/link_epochs.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/check.h"
#include "crypto/key_schedule.h"
#include "transport/limits.h"

namespace securefabric::transport {

using base::Instant;
using base::Result;

LinkEpochs::LinkEpochs(base::Rank own, base::Rank peer, const EpochLimits& limits)
    : own_(own), peer_(peer), limits_(limits) {}

void LinkEpochs::install(crypto::SecretBuffer link_secret, Instant now) {
  SF_CHECK(link_.empty());
  link_ = std::move(link_secret);
  send_secret_ = crypto::derive_direction_secret(link_.view(), own_, peer_, 0);
  receive_secret_ = crypto::derive_direction_secret(link_.view(), peer_, own_, 0);
  start_counting(now);
}

void LinkEpochs::start_counting(Instant now) {
  began_at_ = now;
  bytes_ = 0;
  forgeries_ = 0;
}

// Not while the last change is under way: there are keys for two epochs and no more. An epoch's
// number never wraps; the last one would be reached after four years of nothing but changes.
bool LinkEpochs::is_due(Instant now) const {
  const bool is_settled = changing_since_.is_never() && old_receive_secret_.empty();
  if (link_.empty() || !is_settled || newest_epoch_ == UINT32_MAX) return false;
  return bytes_ >= limits_.bytes || forgeries_ >= limits_.forgeries ||
         now - began_at_ >= limits_.age;
}

bool LinkEpochs::is_overdue(Instant now, base::Duration patience) const {
  return !changing_since_.is_never() && now - changing_since_ >= patience;
}

Instant LinkEpochs::deadline(base::Duration linger, base::Duration patience) const {
  if (link_.empty()) return Instant::never();
  if (!changing_since_.is_never()) return changing_since_ + patience;
  if (!old_receive_secret_.empty()) return newest_opened_at_ + linger;
  return newest_epoch_ == UINT32_MAX ? Instant::never() : began_at_ + limits_.age;
}

void LinkEpochs::draw_half(const DrawPrivateKey& draw, Instant now) {
  key_pair_ = crypto::KeyPair::from_private(draw());
  half_ = wire::EpochFrame{newest_epoch_ + 1, key_pair_->public_key()};
  changing_since_ = now;
}

LinkEpochs::Effects LinkEpochs::begin(const DrawPrivateKey& draw, Instant now) {
  SF_CHECK(is_due(now));
  draw_half(draw, now);
  Effects effects;
  effects.must_send_half = true;
  return effects;
}

Result<LinkEpochs::Effects> LinkEpochs::handle(const wire::EpochFrame& frame,
                                               crypto::EpochBit sealed_in,
                                               const DrawPrivateKey& draw, Instant now) {
  Effects effects;
  if (frame.epoch <= newest_epoch_) return effects;  // sent again, and handled before
  // Keys of the epoch before, though they still open packets, have no say in what comes next. And
  // a peer goes on only after it has heard us in the newest epoch, so that we have moved.
  if (frame.epoch - newest_epoch_ != 1 || sealed_in != newest_bit() || !is_moved()) {
    return base::Error{base::ErrorCode::kPeerLost,
                       "breaks the protocol: it offers keys of epoch " +
                           std::to_string(frame.epoch) + " when those of epoch " +
                           std::to_string(newest_epoch_ + 1) + " come next"};
  }
  if (is_too_often(now)) {
    return base::Error{base::ErrorCode::kPeerLost,
                       "breaks the protocol: it changes keys again and again, more often than "
                       "once in " +
                           std::to_string(kEpochIntervalMin.millis()) + " ms"};
  }
  if (!key_pair_) {
    draw_half(draw, now);
    effects.must_send_half = true;
  }
  auto link = crypto::derive_epoch_link_secret(link_.view(), *key_pair_, frame.public_key,
                                               /*own_is_low=*/own_ < peer_, frame.epoch);
  if (!link) {
    return base::Error{link.error().code,
                       "offers keys that cannot be used: " + link.error().message};
  }
  key_pair_.reset();
  link_ = std::move(link).value();  // the secret before it is wiped: the past is out of reach
  newest_epoch_ = frame.epoch;
  newest_opened_at_ = Instant::never();
  next_send_secret_ = crypto::derive_direction_secret(link_.view(), own_, peer_, newest_epoch_);
  old_receive_secret_ = std::move(receive_secret_);
  receive_secret_ = crypto::derive_direction_secret(link_.view(), peer_, own_, newest_epoch_);
  start_counting(now);
  effects.installs = true;
  return move_if_ready(effects);
}

bool LinkEpochs::is_too_often(Instant now) {
  next_change_at_ = std::max(next_change_at_, now) + kEpochIntervalMin;
  return next_change_at_ - now > kEpochIntervalMin * kEpochsAtOnce;
}

LinkEpochs::Effects LinkEpochs::on_acknowledged(uint32_t epoch) {
  if (half_ && half_->epoch == epoch) {
    half_.reset();
    acknowledged_epoch_ = epoch;
  }
  return move_if_ready({});
}

LinkEpochs::Effects LinkEpochs::on_opened(crypto::EpochBit epoch, Instant now) {
  if (epoch != newest_bit() || old_receive_secret_.empty() || !newest_opened_at_.is_never()) {
    return {};
  }
  newest_opened_at_ = now;
  changing_since_ = Instant::never();
  return move_if_ready({});
}

LinkEpochs::Effects LinkEpochs::move_if_ready(Effects effects) {
  const bool peer_is_ready = acknowledged_epoch_ == newest_epoch_ || !newest_opened_at_.is_never();
  if (is_moved() || !peer_is_ready) return effects;
  sending_epoch_ = newest_epoch_;
  send_secret_ = std::move(next_send_secret_);
  half_.reset();
  acknowledged_epoch_ = newest_epoch_;
  effects.moves = true;
  return effects;
}

bool LinkEpochs::may_retire(Instant now, base::Duration linger) const {
  return is_moved() && !newest_opened_at_.is_never() && now - newest_opened_at_ >= linger &&
         !old_receive_secret_.empty();
}

void LinkEpochs::retire() {
  old_receive_secret_ = crypto::SecretBuffer();
}

void LinkEpochs::wipe() {
  for (crypto::SecretBuffer* secret :
       {&link_, &send_secret_, &next_send_secret_, &receive_secret_, &old_receive_secret_}) {
    *secret = crypto::SecretBuffer();
  }
  key_pair_.reset();
  half_.reset();
  changing_since_ = Instant::never();
}

}  // namespace securefabric::transport
