// What goes out to one peer: probe timeouts, choice of path, packets and bursts. The rest of
// Connection is in connection.cc and connection_receive.cc.
#include <algorithm>

#include "transport/connection.h"
#include "wire/header.h"

namespace securefabric::transport {

using base::Instant;

namespace {

constexpr size_t kPacketOverhead = wire::kHeaderBytes + crypto::kAuthTagBytes;

}  // namespace

// PROTOCOL.md §6.2. First the path is asked: if the tail was lost, the answer tells. Then, if what
// was sent elsewhere since has arrived, the path is suspect, and everything on it moves. If nothing
// arrives anywhere, the peer is busy or gone: only now is it a timeout; the oldest data goes out
// again, and the pauses double.
void Connection::on_probe_timer(SendingPath& path, Instant now) {
  ++path.probe_count;
  if (path.probe_count == 1) {
    ++shared_.traffic.tail_probes;
    path.asked_at = now;
    path.wants_ping = true;
    return;
  }
  if (path.is_active() && another_delivers(path)) return suspect(path, now);
  path.wants_ping = true;
  path.asked_at = now;
  if (path.probe_count == 2) return;
  ++shared_.traffic.probe_timeouts;
  if (path.probe_count >= 2 + kPersistentAfterPtos) path.congestion.on_persistent_loss();
  resend(path.sent.oldest_in_flight());
}

void Connection::resend(const SentPacket* packet) {
  if (packet == nullptr) return;
  if (packet->data) sends_.on_lost(*packet->data);
  for (const ReliableFrame& frame : packet->others) settle_frame_lost(frame);
}

// What another path was given since this one was asked has arrived. (Before, both may just have
// waited for a peer that was busy.)
bool Connection::another_delivers(const SendingPath& path) const {
  return std::any_of(sending_.begin(), sending_.end(), [&](const auto& other) {
    return other.get() != &path && other->is_active() && other->probe_count == 0 &&
           other->sent.newest_acked_sent_at() >= path.asked_at;
  });
}

void Connection::suspect(SendingPath& path, Instant now) {
  ++shared_.traffic.paths_suspected;
  path.state = PathState::kSuspect;
  path.echoes = 0;
  path.forget_challenges();
  path.challenge_interval = kProbeIntervalMin;
  path.next_challenge_at = now;
  path.wants_ping = false;
  settled_.clear();
  path.sent.give_up_all(settled_);
  settle(path, settled_, now);
  path.congestion.on_persistent_loss();
  path.mtu.restart();
}

// What is in flight to the peer waits in its buffers at worst: it says how much they take. One
// packet may always go. `more` bytes are about to.
bool Connection::has_peer_room(uint64_t more) const {
  uint64_t in_flight = more;
  uint64_t packet = kDatagramBytesJumbo;
  for (const auto& path : sending_) {
    in_flight += path->congestion.in_flight();
    packet = std::max<uint64_t>(packet, path->mtu.mtu());
  }
  return in_flight == 0 || in_flight + packet <= peer_window_;
}

// The peer is there, and may be where this path leads: that is worth one more try.
bool Connection::challenge_again(SendingPath& path, Instant now) {
  constexpr int64_t kPrice = kDatagramBytesMin;
  const Challenge& last = path.challenges.front();
  const bool was_just_asked = last.value != 0 && now - last.sent_at < kProbeIntervalMax;
  if (path.has_answered() || was_just_asked || unanswered_credit_ < kPrice) return false;
  unanswered_credit_ -= kPrice;
  path.next_challenge_at = now;
  return true;
}

Connection::Turn Connection::pick_turn(Instant now) {
  if (SendingPath* path = pick_urgent_path(now)) return {path, false};
  if (state_ == ConnectionState::kOpen && has_payload()) {
    open_sending_paths(scheduler_.review(sending_, now), now);
    if (SendingPath* path = scheduler_.pick(sending_, sends_, shared_.random, now))
      return {path, true};
  }
  return {pick_ack_path(now), false};
}

SendingPath* Connection::pick_urgent_path(Instant now) {
  for (const auto& path : sending_) {
    const bool wants_probe = path->is_active() && path->mtu.probe_due(now) > 0;
    if ((path->echo_owed && may_answer(*path)) || path->wants_ping ||
        path->next_challenge_at <= now || wants_probe) {
      return path.get();
    }
  }
  return nullptr;
}

// An ack goes back the way its packets came, so that the round trip is of one pair of sockets.
SendingPath* Connection::pick_ack_path(Instant now) {
  for (const auto& [id, receiving] : receiving_) {
    if (!receiving->acks.is_due(now)) continue;
    SendingPath* back = sending_path(id.reversed());
    if (back != nullptr && (back->is_active() || challenge_again(*back, now))) return back;
    for (const auto& path : sending_) {
      if (path->is_active()) return path.get();
    }
    SendingPath* any = back != nullptr || sending_.empty() ? back : sending_.front().get();
    return any != nullptr && may_answer(*any) ? any : nullptr;
  }
  return nullptr;
}

bool Connection::poll_burst(Instant now, base::MutableBytes burst, Transmit& out) {
  if (!is_usable() || state_ < ConnectionState::kConfirming) return false;
  begin_epoch_if_due(now);
  const Turn turn = pick_turn(now);
  SendingPath* path = turn.path;
  if (path == nullptr) return false;
  path->send_error.clear();

  const size_t full_size = path->mtu.mtu();
  const size_t segments_max =
      std::min(shared_.config.burst_segments_max, kBurstBytesMax / full_size);
  PacketBuilder builder;
  size_t used = 0;
  size_t first_size = 0;
  for (size_t segment = 0; segment < std::max<size_t>(segments_max, 1); ++segment) {
    SentPacket record;
    const bool is_first = segment == 0;
    const bool may_go_on =
        turn.takes_payload && path->has_room(now) && used < path->burst_bytes_max();
    if (!is_first && !may_go_on) break;
    if (!fill_packet(turn, now, is_first, builder, record)) break;
    const size_t size = builder.size() + kPacketOverhead;
    if (!seal_packet(*path, now, builder, std::move(record), burst.subspan(used, size))) {
      return false;
    }
    used += size;
    if (is_first) first_size = size;
    // Only the last datagram of a GSO send may be shorter than the others, and none longer.
    if (size != full_size) break;
  }
  if (used == 0) return false;
  out =
      Transmit{path->id.sender_socket(), path->to, first_size, burst.first(used), peer_, path->id};
  return true;
}

void Connection::note_send_error(base::PathId id, std::string what) {
  if (SendingPath* path = sending_path(id)) path->send_error = std::move(what);
}

// False when the path's packet numbers are used up, which fails the connection.
bool Connection::seal_packet(SendingPath& path, Instant now, const PacketBuilder& builder,
                             SentPacket record, base::MutableBytes datagram) {
  const base::PacketNumber number = path.sealer.next_packet_number();
  wire::encode_header({path.id, peer_spi_, number, epochs_.sending_bit()}, datagram);
  if (!path.sealer.seal(datagram.first(wire::kHeaderBytes), builder.parts(),
                        datagram.subspan(wire::kHeaderBytes), builder.following())) {
    report_failure(base::ErrorCode::kLimit,
                   "cannot be sent to: the path's packet numbers are "
                   "used up; restart the job");
    return false;
  }
  const bool counts_as_in_flight = record.is_ack_eliciting && record.mtu_probe_bytes == 0;
  record.sent_at = now;
  record.bytes = counts_as_in_flight ? static_cast<uint32_t>(datagram.size()) : 0;
  path.on_sent(record.bytes, now);
  if (record.bytes > 0) path.asked_for_ack = record.asks_for_ack;
  if (record.asks_for_ack) path.bytes_unasked = 0;
  // A probe of the MTU may be too large for anybody to answer.
  if (record.is_ack_eliciting && record.mtu_probe_bytes == 0) last_sent_at_ = now;
  path.sent.on_sent(number, std::move(record));
  ++shared_.traffic.packets_sealed;
  shared_.traffic.bytes_sealed += datagram.size();
  epochs_.on_traffic(datagram.size());
  return true;
}

// Order inside a packet: what belongs to the path, acks, control, data. Returns false when there is
// nothing to put in. A probe of the path's MTU goes alone.
bool Connection::fill_packet(const Turn& turn, Instant now, bool is_first, PacketBuilder& builder,
                             SentPacket& record) {
  SendingPath& path = *turn.path;
  const size_t probe_bytes = is_first && path.is_active() ? path.mtu.probe_due(now) : 0;
  if (probe_bytes > 0) {
    builder.begin(probe_bytes - kPacketOverhead);
    builder.add(wire::PingFrame{});
    builder.pad();
    record.is_ack_eliciting = true;
    record.mtu_probe_bytes = static_cast<uint16_t>(probe_bytes);
    path.mtu.on_probe_sent();
    return true;
  }
  builder.begin(path.mtu.mtu() - kPacketOverhead);
  const bool is_challenge = is_first && path.next_challenge_at <= now;
  if (is_first) {
    fill_path_frames(path, now, builder, record);
    fill_acks(now, builder);
  }
  if (turn.takes_payload && path.has_room(now)) {
    fill_control(builder, record);
    if (has_peer_room()) path.message_bytes += fill_data(path, builder, record);
    // More follows in this burst: every datagram but the last has the full size.
    if (!builder.empty() && has_payload()) builder.pad();
  }
  // The echo is to prove that the path carries the least that it must.
  if (is_challenge) builder.pad_to(kDatagramBytesMin - kPacketOverhead);
  if (!is_challenge && !path.has_answered()) {
    unanswered_credit_ -= static_cast<int64_t>(builder.size() + kPacketOverhead);
  }
  return !builder.empty();
}

void Connection::fill_path_frames(SendingPath& path, Instant now, PacketBuilder& builder,
                                  SentPacket& record) {
  if (path.echo_owed) {
    builder.add(wire::ConfirmEchoFrame{*path.echo_owed});
    path.echo_owed.reset();
  }
  if (path.next_challenge_at <= now) {
    Challenge challenge{0, now};
    while (challenge.value == 0) challenge.value = shared_.config.draw_challenge();
    path.on_challenge_sent(challenge, challenge_interval_max(path));
    const bool is_wanted = path.is_for_data && !required_at_.is_never();
    if (!path.has_answered() && path.tries >= kUnansweredTries && !is_wanted) {
      path.next_challenge_at = Instant::never();
    }
    builder.add(wire::ConfirmFrame{challenge.value});
  }
  if (path.wants_ping) {
    path.wants_ping = false;
    record.is_ack_eliciting = true;
    builder.add(wire::PingFrame{});
  }
}

void Connection::fill_acks(Instant now, PacketBuilder& builder) {
  for (const auto& [id, path] : receiving_) {
    if (!path->acks.has_news()) continue;
    if (builder.room() < wire::kAckFrameBytes + wire::AckFrame::kBitmapBytesMax) return;
    builder.add(path->acks.make_ack(id, path->opener.window(), now, bitmap_));
    ++shared_.traffic.acks_sent;
  }
}

void Connection::fill_control(PacketBuilder& builder, SentPacket& record) {
  while (!control_.empty()) {
    ControlFrame& frame = control_.front();
    bool fits = false;
    if (std::holds_alternative<SentEpoch>(frame)) {
      const std::optional<wire::EpochFrame>& half = epochs_.half();
      if (!half) {  // the peer has it by now
        control_.pop_front();
        continue;
      }
      fits = builder.add(*half);
      if (fits) record.others.emplace_back(SentEpoch{half->epoch});
    } else if (std::holds_alternative<SentCredit>(frame)) {
      const uint64_t window = shared_.pool.window_of(peer_);
      fits = builder.add(wire::CreditFrame{receives_.eager_limit(), window, next_credit_serial_,
                                           receives_.announced_limit()});
      if (fits) {
        ++next_credit_serial_;
        advertised_window_ = window;
        advertised_eager_limit_ = receives_.eager_limit();
        advertised_announced_limit_ = receives_.announced_limit();
        credit_queued_ = false;
        record.others.emplace_back(SentCredit{});
      }
    } else if (const auto* grant = std::get_if<wire::GrantFrame>(&frame)) {
      fits = builder.add(*grant);
      if (fits) record.others.emplace_back(*grant);
    } else if (const auto* abort = std::get_if<std::shared_ptr<const wire::AbortFrame>>(&frame)) {
      fits = builder.add(**abort);
      if (fits) record.others.emplace_back(*abort);
    } else if (const auto* status = std::get_if<wire::StatusFrame>(&frame)) {
      fits = builder.add(*status);
    } else {
      fits = builder.add(wire::GoodbyeFrame{});
    }
    if (!fits) return;
    record.is_ack_eliciting = true;
    control_.pop_front();
  }
}

// Returns the bytes of payload added.
uint64_t Connection::fill_data(SendingPath& path, PacketBuilder& builder, SentPacket& record) {
  uint64_t added = 0;
  bool asks = false;
  while (sends_.has_next()) {
    auto frame = sends_.next(builder.data_room());
    if (!frame) break;
    const size_t packet_bytes =
        sends_.has_next() ? path.mtu.mtu() : kPacketOverhead + builder.size() + frame->bytes.size();
    frame->wants_ack_now = frame->wants_ack_now || path.wants_ack_of_next(packet_bytes) ||
                           !has_peer_room(packet_bytes);
    asks = asks || frame->wants_ack_now;
    SF_CHECK(builder.add_data(*frame));
    added += frame->bytes.size();
    record.is_ack_eliciting = true;
    shared_.traffic.message_bytes_sent += frame->bytes.size();
    const SentData data{frame->message_id, frame->offset,
                        static_cast<uint32_t>(frame->bytes.size())};
    if (record.data) {
      record.others.emplace_back(data);
    } else {
      record.data = data;
    }
  }
  record.asks_for_ack = asks;
  return added;
}

}  // namespace securefabric::transport
