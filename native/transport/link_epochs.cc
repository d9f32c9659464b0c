#include "transport/link_epochs.h"

#include <string>
#include <utility>

#include "base/check.h"
#include "crypto/key_schedule.h"

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

// Not while the last change is under way: there are keys for two epochs and no more.
bool LinkEpochs::is_due(Instant now) const {
  if (link_.empty() || key_pair_ || !is_moved() || !old_receive_secret_.empty()) return false;
  return bytes_ >= limits_.bytes || forgeries_ >= limits_.forgeries ||
         now - began_at_ >= limits_.age;
}

Instant LinkEpochs::deadline(base::Duration linger) const {
  if (link_.empty() || key_pair_ || !is_moved()) return Instant::never();
  if (old_receive_secret_.empty()) return began_at_ + limits_.age;
  return newest_opened_at_.is_never() ? Instant::never() : newest_opened_at_ + linger;
}

void LinkEpochs::draw_half(const DrawPrivateKey& draw) {
  key_pair_ = crypto::KeyPair::from_private(draw());
  half_ = wire::EpochFrame{newest_epoch_ + 1, key_pair_->public_key()};
}

LinkEpochs::Effects LinkEpochs::begin(const DrawPrivateKey& draw) {
  SF_CHECK(!key_pair_ && is_moved());
  draw_half(draw);
  Effects effects;
  effects.must_send_half = true;
  return effects;
}

Result<LinkEpochs::Effects> LinkEpochs::handle(const wire::EpochFrame& frame,
                                               const DrawPrivateKey& draw, Instant now) {
  Effects effects;
  if (frame.epoch <= newest_epoch_) return effects;  // sent again, and handled before
  if (frame.epoch != newest_epoch_ + 1 || !is_moved()) {
    return base::Error{base::ErrorCode::kPeerLost, "it broke the protocol: epoch " +
                                                       std::to_string(frame.epoch) + " after " +
                                                       std::to_string(newest_epoch_)};
  }
  if (!key_pair_) {
    draw_half(draw);
    effects.must_send_half = true;
  }
  auto link = crypto::derive_epoch_link_secret(link_.view(), *key_pair_, frame.public_key,
                                               /*own_is_low=*/own_ < peer_, frame.epoch);
  if (!link) return link.error();
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

LinkEpochs::Effects LinkEpochs::on_acknowledged(uint32_t epoch) {
  if (half_ && half_->epoch == epoch) {
    half_.reset();
    acknowledged_epoch_ = epoch;
  }
  return move_if_ready({});
}

LinkEpochs::Effects LinkEpochs::on_opened(crypto::EpochBit epoch, Instant now) {
  if (old_receive_secret_.empty() || epoch != newest_bit()) return {};
  if (newest_opened_at_.is_never()) newest_opened_at_ = now;
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

}  // namespace securefabric::transport
