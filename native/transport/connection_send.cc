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

// PROTOCOL.md §6. The oldest data goes out again, on whichever path is next, and the silent path is
// asked for an ack. A path that stays silent while another delivers is suspect: all its data moves.
// The last path that might work is never suspected: it is probed with data, backing off.
void Connection::on_probe_timeout(SendingPath& path, Instant now) {
  ++path.pto_count;
  ++shared_.traffic.probe_timeouts;
  const bool another_delivers =
      std::any_of(sending_.begin(), sending_.end(), [&](const auto& other) {
        return other.get() != &path && other->state == PathState::kActive && other->pto_count == 0;
      });
  if (path.state == PathState::kActive && another_delivers && path.pto_count >= kSuspectAfterPtos) {
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
    return;
  }
  if (path.pto_count >= kSuspectAfterPtos) path.congestion.on_persistent_loss();
  if (const SentPacket* oldest = path.sent.oldest_in_flight()) {
    if (oldest->data) sends_.on_lost(*oldest->data);
    for (const ReliableFrame& frame : oldest->others) settle_frame_lost(frame);
  }
  path.wants_ping = true;
}

bool Connection::has_payload() const {
  return !control_.empty() || sends_.has_next();
}

SendingPath* Connection::pick_path(Instant now) {
  if (SendingPath* path = pick_urgent_path(now)) return path;
  if (state_ == ConnectionState::kOpen && has_payload()) {
    if (SendingPath* path = pick_data_path()) return path;
  }
  return pick_ack_path(now);
}

SendingPath* Connection::pick_urgent_path(Instant now) {
  for (const auto& path : sending_) {
    if (path->echo_owed || path->wants_ping || path->next_challenge_at <= now) return path.get();
  }
  return nullptr;
}

// Round robin over the paths that may carry data and have room in their window.
SendingPath* Connection::pick_data_path() {
  for (size_t i = 0; i < sending_.size(); ++i) {
    SendingPath& path = *sending_[(next_path_ + i) % sending_.size()];
    if (path.state != PathState::kActive || !path.has_room()) continue;
    next_path_ = (next_path_ + i + 1) % sending_.size();
    return &path;
  }
  return nullptr;
}

// An ack goes back the way its packets came, so that the round trip is of one pair of sockets.
SendingPath* Connection::pick_ack_path(Instant now) {
  for (const auto& [id, receiving] : receiving_) {
    if (!receiving->acks.is_due(now)) continue;
    SendingPath* back = sending_path(id.reversed());
    if (back != nullptr && back->state == PathState::kActive) return back;
    for (const auto& path : sending_) {
      if (path->state == PathState::kActive) return path.get();
    }
    return back != nullptr || sending_.empty() ? back : sending_.front().get();
  }
  return nullptr;
}

bool Connection::poll_burst(Instant now, base::MutableBytes burst, Transmit& out) {
  if (!is_usable() || state_ == ConnectionState::kResolving) return false;
  begin_epoch_if_due(now);
  SendingPath* path = pick_path(now);
  if (path == nullptr) return false;

  const size_t segments_max =
      std::min(shared_.config.burst_segments_max, kBurstBytesMax / datagram_bytes_);
  PacketBuilder builder;
  size_t used = 0;
  size_t first_size = 0;
  for (size_t segment = 0; segment < std::max<size_t>(segments_max, 1); ++segment) {
    SentPacket record;
    const bool is_first = segment == 0;
    if (!is_first && (!path->has_room() || path->state != PathState::kActive)) break;
    if (!fill_packet(*path, now, is_first, builder, record)) break;
    const size_t size = builder.size() + kPacketOverhead;
    const base::MutableBytes datagram = burst.subspan(used, size);
    const base::PacketNumber number = path->sealer.next_packet_number();
    wire::encode_header({path->id, peer_spi_, number, epochs_.sending_bit()}, datagram);
    if (!path->sealer.seal(datagram.first(wire::kHeaderBytes), builder.parts(),
                           datagram.subspan(wire::kHeaderBytes))) {
      report_failure(base::ErrorCode::kLimit,
                     "cannot be sent to: the path's packet numbers are "
                     "used up; restart the job");
      return false;
    }
    record.sent_at = now;
    record.bytes = record.is_ack_eliciting ? static_cast<uint32_t>(size) : 0;
    path->congestion.on_sent(record.bytes, now);
    if (record.is_ack_eliciting) last_sent_at_ = now;
    path->sent.on_sent(number, std::move(record));
    ++shared_.traffic.packets_sealed;
    shared_.traffic.bytes_sealed += size;
    epochs_.on_traffic(size);
    used += size;
    if (is_first) first_size = size;
    // Only the last datagram of a GSO send may be shorter than the others.
    if (size < first_size || size < datagram_bytes_) break;
  }
  if (used == 0) return false;
  out = Transmit{path->id.sender_socket(), path->to, first_size, burst.first(used)};
  return true;
}

// Order inside a packet: what belongs to the path, acks, control, data. Returns false when there is
// nothing to put in.
bool Connection::fill_packet(SendingPath& path, Instant now, bool is_first, PacketBuilder& builder,
                             SentPacket& record) {
  builder.begin(datagram_bytes_ - kPacketOverhead);
  if (is_first) {
    fill_path_frames(path, now, builder, record);
    fill_acks(now, builder);
  }
  if (state_ == ConnectionState::kOpen && path.state == PathState::kActive && path.has_room()) {
    fill_control(builder, record);
    path.message_bytes += fill_data(builder, record);
    // More follows in this burst: every datagram but the last has the full size.
    if (!builder.empty() && has_payload()) builder.pad();
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
    while (challenge.value == 0) challenge.value = shared_.random.next();
    path.on_challenge_sent(challenge);
    path.next_challenge_at = now + path.challenge_interval;
    path.challenge_interval = base::shorter(path.challenge_interval * 2, kProbeIntervalMax);
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
      fits = builder.add(wire::CreditFrame{receives_.eager_limit()});
      if (fits) {
        advertised_eager_limit_ = receives_.eager_limit();
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
uint64_t Connection::fill_data(PacketBuilder& builder, SentPacket& record) {
  uint64_t added = 0;
  while (sends_.has_next()) {
    const auto frame = sends_.next(builder.data_room());
    if (!frame) break;
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
  return added;
}

}  // namespace securefabric::transport
