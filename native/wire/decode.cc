#include "wire/decode.h"

#include <algorithm>

#include "wire/flags.h"

namespace securefabric::wire {
namespace {

// Leaves zeros where the packet ends too early: the reader remembers that.
template <size_t kSize>
void read_array(base::ByteReader& reader, std::array<uint8_t, kSize>& out) {
  const base::Bytes bytes = reader.take(kSize);
  std::copy(bytes.begin(), bytes.end(), out.begin());
}

// Reads a signature; false when a reserved byte is set.
bool read_signature(base::ByteReader& reader, Signature& out) {
  out.kind = reader.u8();
  out.data_type = reader.u8();
  out.reduce_op = reader.u8();
  const uint8_t reserved = reader.u8();
  out.root = reader.u32();
  out.count = reader.u64();
  read_array(reader, out.group_tail);
  return reserved == 0 && reader.u64() == 0;
}

}  // namespace

std::optional<Frame> FrameDecoder::next() {
  if (malformed_ || reader_.at_end()) return std::nullopt;
  switch (static_cast<FrameType>(reader_.u8())) {
    case FrameType::kPadding: return padding();
    case FrameType::kData: return data();
    case FrameType::kAck: return ack();
    case FrameType::kCredit:
      return if_complete(CreditFrame{reader_.u64(), reader_.u64(), reader_.u32(), reader_.u64()});
    case FrameType::kGrant: return grant();
    case FrameType::kConfirm: return if_complete(ConfirmFrame{reader_.u64()});
    case FrameType::kConfirmEcho: return if_complete(ConfirmEchoFrame{reader_.u64()});
    case FrameType::kPing: return PingFrame{};
    case FrameType::kStatus: return status();
    case FrameType::kAbort: return abort();
    case FrameType::kGoodbye: return GoodbyeFrame{};
    case FrameType::kEpoch: return epoch();
  }
  return malformed();
}

std::optional<Frame> FrameDecoder::malformed() {
  malformed_ = true;
  return std::nullopt;
}

std::optional<Frame> FrameDecoder::if_complete(Frame frame) {
  if (!reader_.ok()) return malformed();
  return frame;
}

std::optional<Frame> FrameDecoder::padding() {
  const base::Bytes rest = reader_.take(reader_.remaining());
  const bool all_zero = std::all_of(rest.begin(), rest.end(), [](uint8_t b) { return b == 0; });
  return all_zero ? std::nullopt : malformed();
}

std::optional<Frame> FrameDecoder::data() {
  DataFrame frame;
  const uint8_t flags = reader_.u8();
  const uint16_t fragment_length = reader_.u16();
  frame.key.slot = reader_.u32();
  frame.message_id = reader_.u64();
  frame.key.group = reader_.u64();
  frame.key.operation = reader_.u64();
  frame.message_length = reader_.u64();
  frame.offset = reader_.u64();
  if ((flags & ~kDataFlags) != 0) return malformed();
  frame.wants_ack_now = (flags & kDataWantsAckNow) != 0;
  frame.is_eager = (flags & kDataIsEager) != 0;
  frame.is_announced = (flags & kDataIsAnnounced) != 0;
  if (frame.is_eager && frame.is_announced) return malformed();
  if ((flags & kDataPointToPoint) != 0) frame.key.channel = Channel::kPointToPoint;
  if ((flags & kDataHasSignature) != 0) {
    frame.signature.emplace();
    if (!read_signature(reader_, *frame.signature)) return malformed();
  }
  // A fragment lies inside its message, and only the one at offset 0 carries the signature.
  if (frame.offset > frame.message_length) return malformed();
  if (fragment_length > frame.message_length - frame.offset) return malformed();
  if (frame.signature.has_value() != (frame.offset == 0)) return malformed();
  // An empty fragment is an empty message or a request to send; either begins its message.
  if (fragment_length == 0 && frame.offset != 0) return malformed();
  frame.bytes = reader_.take(fragment_length);
  return if_complete(frame);
}

std::optional<Frame> FrameDecoder::ack() {
  AckFrame frame;
  const uint8_t bitmap_bytes = reader_.u8();
  if (bitmap_bytes > AckFrame::kBitmapBytesMax) return malformed();
  frame.path = base::PathId{reader_.u16()};
  frame.largest = reader_.u64();
  frame.delay_us = reader_.u32();
  frame.ce_count = reader_.u32();
  frame.bitmap = reader_.take(bitmap_bytes);
  return if_complete(frame);
}

std::optional<Frame> FrameDecoder::grant() {
  GrantFrame frame;
  const uint8_t flags = reader_.u8();
  if ((flags & ~kGrantFlags) != 0) return malformed();
  if ((flags & kGrantPointToPoint) != 0) frame.key.channel = Channel::kPointToPoint;
  frame.is_pull = (flags & kGrantIsPull) != 0;
  frame.key.slot = reader_.u32();
  frame.key.group = reader_.u64();
  frame.key.operation = reader_.u64();
  frame.granted = reader_.u64();
  frame.grant_id = reader_.u64();
  return if_complete(frame);
}

std::optional<Frame> FrameDecoder::status() {
  StatusFrame frame;
  const uint8_t flags = reader_.u8();
  if (flags > kStatusUnknownGroup) return malformed();
  frame.wants_answer = flags == kStatusWantsAnswer;
  frame.is_unknown_group = flags == kStatusUnknownGroup;
  frame.group = reader_.u64();
  frame.operation = reader_.u64();
  if (!read_signature(reader_, frame.signature)) return malformed();
  if (frame.is_unknown_group && frame.signature != Signature{}) return malformed();
  return if_complete(frame);
}

std::optional<Frame> FrameDecoder::abort() {
  AbortFrame frame;
  frame.code = reader_.u8();
  const uint16_t reason_bytes = reader_.u16();
  frame.group = reader_.u64();
  read_array(reader_, frame.group_tail);
  if (reason_bytes > AbortFrame::kReasonBytesMax) return malformed();
  frame.reason = base::to_text(reader_.take(reason_bytes));
  // The text ends up on a terminal: nothing but printable ASCII survives.
  for (char& c : frame.reason) {
    if (c < 0x20 || c > 0x7E) c = '?';
  }
  return if_complete(frame);
}

std::optional<Frame> FrameDecoder::epoch() {
  EpochFrame frame;
  frame.epoch = reader_.u32();
  read_array(reader_, frame.public_key);
  if (frame.epoch == 0) return malformed();
  return if_complete(frame);
}

}  // namespace securefabric::wire
