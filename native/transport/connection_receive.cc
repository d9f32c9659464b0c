// What arrives from one peer: open, decode, dispatch, settle. The rest of Connection is in
// connection.cc and connection_send.cc.
#include <algorithm>
#include <utility>

#include "transport/connection.h"
#include "wire/decode.h"
#include "wire/header.h"

namespace securefabric::transport {

using base::Error;
using base::ErrorCode;
using base::Instant;
using OpenStatus = crypto::OpenStatus;

void Connection::handle_packet(Instant now, const wire::Header& header, bool is_marked_ce,
                               base::Bytes datagram, base::Duration waited) {
  if (!is_usable()) {
    ++shared_.drops.peer_closed;
    return;
  }
  if (state_ == ConnectionState::kResolving) {
    ++shared_.drops.unknown_spi;
    return;
  }
  ReceivingPath* path = receiving_path(header.path);
  // Keys of a path on which nothing has verified live for this packet alone: what a stranger sends
  // leaves nothing behind.
  std::unique_ptr<ReceivingPath> candidate;
  if (path == nullptr) {
    if (!may_receive_on(header.path)) {
      ++shared_.drops.path_mismatch;
      return;
    }
    candidate = std::make_unique<ReceivingPath>(header.path, make_opener(header.path));
    path = candidate.get();
  }
  const base::Bytes aad = datagram.first(wire::kHeaderBytes);
  const base::Bytes sealed = datagram.subspan(wire::kHeaderBytes);
  const size_t plain_bytes = sealed.size() - crypto::kAuthTagBytes;
  // Never shrunk: to grow it again would cost as much as a copy.
  if (plaintext_.size() < plain_bytes) plaintext_.resize(plain_bytes);
  const base::MutableBytes plaintext = base::MutableBytes(plaintext_).first(plain_bytes);
  const OpenStatus status =
      path->opener.open(header.epoch_bit, header.packet_number, aad, sealed, plaintext);
  if (status != OpenStatus::kOk) return count_drop(status);
  if (candidate) receiving_[header.path] = std::move(candidate);
  if (is_passive() && !link(now)) return;
  epochs_.on_traffic(datagram.size());
  apply(epochs_.on_opened(header.epoch_bit, now));

  ++shared_.traffic.packets_opened;
  shared_.traffic.bytes_opened += datagram.size();
  if (is_marked_ce) ++shared_.traffic.ce_received;
  waited_ = waited;
  unanswered_credit_ =
      std::min(unanswered_credit_ + static_cast<int64_t>(datagram.size()), kUnansweredCreditMax);
  const PacketContent content = handle_frames(now, *path, header.epoch_bit, plaintext);
  if (content.is_malformed) {
    ++shared_.drops.malformed;
    report_failure(ErrorCode::kPeerLost,
                   "sent a packet that breaks the protocol under a valid key: it runs another "
                   "version of securefabric, or its memory is damaged");
    return;
  }
  path->acks.on_packet({header.packet_number, datagram.size(), content.is_ack_eliciting,
                        content.wants_ack_now, is_marked_ce, waited},
                       now);
}

void Connection::count_drop(OpenStatus status) {
  DropCounters& drops = shared_.drops;
  switch (status) {
    case OpenStatus::kOk: break;
    case OpenStatus::kUnknownEpoch: ++drops.unknown_spi; break;
    case OpenStatus::kStaleGeneration: ++drops.stale_generation; break;
    case OpenStatus::kFutureGeneration: ++drops.future_generation; break;
    case OpenStatus::kReplayDuplicate: ++drops.replay_duplicate; break;
    case OpenStatus::kReplayTooOld: ++drops.replay_too_old; break;
    case OpenStatus::kAuthFailed:
      ++drops.auth_failed;
      epochs_.on_forgery();
      break;
    case OpenStatus::kLimit: ++drops.packet_limit; break;
  }
}

Connection::PacketContent Connection::handle_frames(Instant now, ReceivingPath& path,
                                                    crypto::EpochBit sealed_in,
                                                    base::Bytes plaintext) {
  PacketContent content;
  wire::FrameDecoder decoder(plaintext);
  while (const auto frame = decoder.next()) {
    if (const auto* data = std::get_if<wire::DataFrame>(&*frame)) {
      handle(now, path, *data, content);
    } else if (const auto* ack = std::get_if<wire::AckFrame>(&*frame)) {
      handle(now, *ack, content);
    } else if (const auto* confirm = std::get_if<wire::ConfirmFrame>(&*frame)) {
      handle(now, path, *confirm);
    } else if (const auto* echo = std::get_if<wire::ConfirmEchoFrame>(&*frame)) {
      handle(now, path, *echo);
    } else {
      content.is_ack_eliciting = true;
      if (std::holds_alternative<wire::PingFrame>(*frame)) content.wants_ack_now = true;
      if (const auto* grant = std::get_if<wire::GrantFrame>(&*frame)) handle(*grant);
      if (const auto* credit = std::get_if<wire::CreditFrame>(&*frame)) {
        handle(*credit);
      }
      if (const auto* status = std::get_if<wire::StatusFrame>(&*frame)) {
        shared_.events.push_back(StatusReceived{peer_, *status});
      }
      if (const auto* abort = std::get_if<wire::AbortFrame>(&*frame)) handle(*abort);
      if (const auto* epoch = std::get_if<wire::EpochFrame>(&*frame))
        handle(now, *epoch, sealed_in);
      if (std::holds_alternative<wire::GoodbyeFrame>(*frame)) handle_goodbye();
    }
    // A frame may have ended the connection: what follows it has no meaning any more.
    if (!is_usable()) return content;
  }
  content.is_malformed = content.is_malformed || decoder.is_malformed();
  return content;
}

void Connection::handle(Instant now, ReceivingPath& path, const wire::DataFrame& frame,
                        PacketContent& content) {
  content.is_ack_eliciting = true;
  content.wants_ack_now = content.wants_ack_now || frame.wants_ack_now;
  if (!path.is_confirmed) {
    // PROTOCOL.md §3: data before a verified CONFIRM is dropped. A correct peer never sends it, for
    // it waits for the echo; not acknowledging would only make a wrong one resend for ever.
    ++shared_.drops.unconfirmed;
    content.is_malformed = true;
    return;
  }
  if (!frame.is_eager && shared_.pool.on_activity(peer_, now)) shared_.shares_changed = true;
  InboundMessages::Effects effects;
  const base::Status status = receives_.on_data(frame, effects);
  apply(effects, now);
  if (!status) report_failure(status.error().code, status.error().message);
}

void Connection::apply(InboundMessages::Effects& effects, Instant now) {
  for (Event& event : effects.events) shared_.events.push_back(std::move(event));
  for (const wire::GrantFrame& grant : effects.grants) send_grant(grant.key, grant.granted, now);
  if (!grants_waiting_.empty()) serve_grants(now);
  update_credit();
}

void Connection::update_credit() {
  if (credit_queued_ || !is_usable() || state_ < ConnectionState::kConfirming) return;
  const uint64_t window = shared_.pool.window_of(peer_);
  const bool is_narrower = window < advertised_window_ - advertised_window_ / 4;
  const bool is_wider = window > advertised_window_ + advertised_window_ / 4;
  const uint64_t announced_more = receives_.announced_limit() - advertised_announced_limit_;
  const bool has_freed = receives_.eager_limit() - advertised_eager_limit_ >= kEagerWindow / 4 ||
                         announced_more >= kAnnouncedMax / 4 ||
                         (announced_more > 0 && is_short_of_credit());
  if (!is_narrower && !is_wider && !has_freed) return;
  credit_queued_ = true;
  queue_control(SentCredit{});
}

// A window may shrink, so the order counts.
void Connection::handle(const wire::CreditFrame& frame) {
  sends_.on_credit(frame.eager_limit, frame.announced_limit);
  if (frame.serial <= peer_credit_serial_) return;
  peer_credit_serial_ = frame.serial;
  peer_window_ = frame.window;
}

void Connection::handle(const wire::GrantFrame& frame) {
  const base::Status status = sends_.on_grant(frame);
  if (!status) report_failure(status.error().code, status.error().message);
}

void Connection::handle(Instant now, const wire::AckFrame& frame, PacketContent& content) {
  SendingPath* path = sending_path(frame.path);
  settled_.clear();
  if (path == nullptr || !path->sent.on_ack(frame, now, settled_)) {
    content.is_malformed = true;
    return;
  }
  if (settled_.rtt) {
    const base::Duration host_delay = base::Duration::micros(frame.delay_us) + waited_;
    path->on_sample(*settled_.rtt, host_delay, now);
    on_congestion_report(*path, frame.ce_count, now);
  }
  heard(path->sent.newest_acked_sent_at());
  if (settled_.has_progress()) path->probe_count = 0;
  path->sent.detect_lost(now, path->rtt.loss_delay(), settled_);
  settle(*path, settled_, now);
}

void Connection::on_congestion_report(SendingPath& path, uint32_t ce_count, Instant now) {
  const Instant sent_at = now - *settled_.rtt;
  path.congestion.on_delay(path.rtt.latest_delay(), sent_at, now);
  path.congestion.on_marked(ce_count - std::exchange(path.ce_count, ce_count),
                            settled_.acked.size(), sent_at, now);
  if (!path.congestion.is_congested()) return;
  path.congested_at = now;
  path.avoid(now);
}

void Connection::settle(SendingPath& path, const SentPackets::Settled& settled, Instant now) {
  const auto deliver = [this](const SentData& data) {
    if (const auto token = sends_.on_acked(data)) shared_.events.push_back(SendDelivered{*token});
  };
  const auto on_delivered = [&](const SentPacket& packet) {
    if (packet.data) deliver(*packet.data);
    for (const ReliableFrame& frame : packet.others) {
      if (const auto* data = std::get_if<SentData>(&frame)) deliver(*data);
      if (const auto* half = std::get_if<SentEpoch>(&frame)) {
        apply(epochs_.on_acknowledged(half->epoch));
      }
    }
  };
  const auto on_arrived = [&](const SentPacket& packet) {
    if (packet.mtu_probe_bytes > 0) {
      path.mtu.on_probe_acked(packet.mtu_probe_bytes, now);
      path.congestion.on_packet_bytes(path.mtu.mtu());
    }
    path.mtu.on_acked(packet.bytes);
    on_delivered(packet);
  };
  for (const SentPacket& packet : settled.acked) {
    path.congestion.on_acked(packet.bytes, packet.sent_at);
    on_arrived(packet);
  }
  for (const SentPacket& packet : settled.revived) {
    ++shared_.traffic.spurious_losses;
    path.rtt.on_spurious_loss(now - packet.sent_at);
    path.congestion.on_spurious_loss(packet.sent_at);
    on_arrived(packet);
  }
  bool has_lost = false;
  for (const SentPacket& packet : settled.lost) {
    if (packet.mtu_probe_bytes > 0) {
      path.mtu.on_probe_lost(packet.mtu_probe_bytes, now);
      continue;
    }
    has_lost = true;
    path.mtu.on_lost(packet.bytes);
    ++shared_.traffic.packets_lost;
    ++path.packets_lost;
    path.congestion.on_lost(packet.bytes, packet.sent_at, now);
    if (packet.data) sends_.on_lost(*packet.data);
    for (const ReliableFrame& frame : packet.others) settle_frame_lost(frame);
  }
  if (has_lost) path.avoid(now);  // so that the resend takes another
}

void Connection::settle_frame_lost(const ReliableFrame& frame) {
  if (const auto* data = std::get_if<SentData>(&frame)) {
    sends_.on_lost(*data);
  } else if (const auto* grant = std::get_if<wire::GrantFrame>(&frame)) {
    control_.push_front(*grant);
  } else if (const auto* abort = std::get_if<std::shared_ptr<const wire::AbortFrame>>(&frame)) {
    control_.push_front(*abort);
  } else if (const auto* half = std::get_if<SentEpoch>(&frame)) {
    control_.push_front(*half);
  } else if (!credit_queued_) {
    credit_queued_ = true;
    control_.push_front(SentCredit{});
  }
}

// The peer may use more paths than we have opened: each needs its way back.
void Connection::handle(Instant now, ReceivingPath& path, const wire::ConfirmFrame& frame) {
  path.is_confirmed = true;
  SendingPath* back = sending_path(path.id.reversed());
  if (back == nullptr && sending_.size() < kPathsPerPeerMax) {
    back = &open_sending_path(path.id.reversed(), now);
    back->is_for_data = back->is_in_use = sending_.size() <= shared_.config.paths_per_peer;
    back->next_challenge_at = Instant::never();
    back->tries = kUnansweredTries;
  }
  if (back == nullptr) return;
  back->echo_owed = frame.challenge;
  challenge_again(*back, now);
}

void Connection::handle(Instant now, ReceivingPath&, const wire::ConfirmEchoFrame& frame) {
  for (const auto& path : sending_) {
    const auto sent_at = path->on_echo(frame.challenge);
    if (sent_at) return on_echo(*path, now - *sent_at, now);
  }
  // An echo that came twice, or late.
}

void Connection::on_echo(SendingPath& path, base::Duration round_trip, Instant now) {
  heard(now - round_trip);
  path.on_sample(round_trip, waited_, now);
  // Small and early: the best sample of a path without a queue. The probes of the MTU that follow
  // queue behind those of other paths.
  path.congestion.on_delay(path.rtt.latest_delay(), now - round_trip, now);
  ++path.echoes;
  if (path.state == PathState::kSuspect && path.echoes < kProbeEchoesNeeded) {
    path.next_challenge_at = now;
    return;
  }
  path.state = PathState::kActive;
  path.probe_count = 0;
  path.next_challenge_at = Instant::never();
  if (state_ == ConnectionState::kConfirming) {
    state_ = ConnectionState::kOpen;
    was_reached_ = true;
    last_heard_at_ = now - round_trip;
    last_sent_at_ = now;
  }
}

void Connection::handle(const wire::AbortFrame& frame) {
  const bool is_known = frame.code <= static_cast<uint8_t>(ErrorCode::kSystem);
  const ErrorCode code = is_known ? static_cast<ErrorCode>(frame.code) : ErrorCode::kAborted;
  shared_.events.push_back(
      GroupAborted{peer_, frame.group, frame.group_tail, Error{code, frame.reason}});
}

// Who leaves in good order has what it asked for, though its last acks may be lost; and what it has
// sent still counts.
void Connection::handle_goodbye() {
  state_ = ConnectionState::kClosed;
  shared_.pool.remove(peer_);
  shared_.shares_changed = true;
  for (const Token token : sends_.sent_as_a_whole()) {
    shared_.events.push_back(SendDelivered{token});
  }
  sends_.clear();
  receives_.keep_complete();
  control_.clear();
  wipe_keys();
  error_ = Error{ErrorCode::kPeerLost,
                 describe() + " has left the job: it shut its process groups down"};
  shared_.events.push_back(PeerLeft{peer_});
}

}  // namespace securefabric::transport
