// How a connection's paths follow the epochs of its link. The rest of Connection is in
// connection.cc, connection_receive.cc and connection_send.cc.
#include <algorithm>

#include "crypto/key_schedule.h"
#include "transport/connection.h"

namespace securefabric::transport {

using base::Duration;
using base::Instant;

// What a new connection goes by, see kEpochAgeSpread.
EpochLimits Connection::epoch_limits(const EpochLimits& configured, base::Random& random) {
  EpochLimits limits = configured;
  const int64_t spread = limits.age.nanos() / kEpochAgeSpread;
  limits.age =
      limits.age -
      Duration::nanos(static_cast<int64_t>(random.below(static_cast<uint64_t>(spread) + 1)));
  return limits;
}

// PROTOCOL.md §4: receive keys first, then sending moves.
void Connection::apply(const LinkEpochs::Effects& effects) {
  if (effects.must_send_half) queue_control(SentEpoch{});
  if (effects.installs) {
    for (const auto& [id, path] : receiving_) {
      path->opener.install_epoch(epochs_.newest_bit(),
                                 crypto::derive_path_secret(epochs_.receive_secret(), id));
    }
  }
  if (effects.moves) {
    ++shared_.traffic.epochs_begun;
    for (const auto& path : sending_) {
      path->sealer.begin_epoch(crypto::derive_path_secret(epochs_.send_secret(), path->id));
    }
  }
}

void Connection::handle(Instant now, const wire::EpochFrame& frame, crypto::EpochBit sealed_in) {
  const auto effects = epochs_.handle(frame, sealed_in, shared_.config.draw_private_key, now);
  if (!effects) return report_failure(effects.error().code, effects.error().message);
  apply(effects.value());
}

void Connection::begin_epoch_if_due(Instant now) {
  if (state_ != ConnectionState::kOpen || !epochs_.is_due(now)) return;
  apply(epochs_.begin(shared_.config.draw_private_key, now));
}

void Connection::retire_epoch_if_due(Instant now) {
  if (!epochs_.may_retire(now, epoch_linger())) return;
  for (const auto& [id, path] : receiving_) path->opener.retire_epoch(epochs_.newest_bit() ^ 1);
  epochs_.retire();
}

void Connection::fail_epoch_if_overdue(Instant now) {
  if (!epochs_.is_overdue(now, epoch_patience())) return;
  report_failure(base::ErrorCode::kPeerLost,
                 "does not change its keys: it has not followed into the next epoch, which began " +
                     in_seconds(epoch_patience()) + " ago");
}

Duration Connection::epoch_linger() const {
  Duration longest = kPtoMin;
  for (const auto& path : sending_) longest = std::max(longest, path->rtt.pto());
  return longest * kEpochLingerPtos;
}

Duration Connection::epoch_patience() const {
  return shared_.config.death_timeout + kEpochChangeMax;
}

void Connection::wipe_keys() {
  epochs_.wipe();
  for (const auto& path : sending_) path->sealer.wipe();
  for (const auto& [id, path] : receiving_) {
    path->opener.retire_epoch(0);
    path->opener.retire_epoch(1);
  }
}

crypto::PathOpener Connection::make_opener(base::PathId id) const {
  const EndpointConfig& config = shared_.config;
  crypto::PathOpener opener(*config.aead, crypto::derive_path_secret(epochs_.receive_secret(), id),
                            id, config.generation_bits, epochs_.newest_bit());
  if (const base::Bytes old = epochs_.old_receive_secret(); !old.empty()) {
    opener.install_epoch(epochs_.newest_bit() ^ 1, crypto::derive_path_secret(old, id));
  }
  return opener;
}

}  // namespace securefabric::transport
