// How a connection's paths follow the epochs of its link. The rest of Connection is in
// connection.cc, connection_receive.cc and connection_send.cc.
#include <algorithm>

#include "crypto/key_schedule.h"
#include "transport/connection.h"

namespace securefabric::transport {

using base::Instant;

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

void Connection::handle(Instant now, const wire::EpochFrame& frame) {
  const auto effects = epochs_.handle(frame, shared_.config.draw_private_key, now);
  if (!effects) return report_failure(effects.error().code, effects.error().message);
  apply(effects.value());
}

void Connection::begin_epoch_if_due(Instant now) {
  if (state_ != ConnectionState::kOpen || !epochs_.is_due(now)) return;
  apply(epochs_.begin(shared_.config.draw_private_key));
}

void Connection::retire_epoch_if_due(Instant now) {
  if (!epochs_.may_retire(now, epoch_linger())) return;
  for (const auto& [id, path] : receiving_) path->opener.retire_epoch(epochs_.newest_bit() ^ 1);
  epochs_.retire();
}

// Nothing that was sealed under the old keys is still on its way after this.
base::Duration Connection::epoch_linger() const {
  base::Duration longest = kPtoMin;
  for (const auto& path : sending_) longest = std::max(longest, path->rtt.pto());
  return longest * 3;
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
