#include "wire/frames.h"

#include "wire/flags.h"

namespace securefabric::wire {
namespace {

// Each encoder states the size it promised in the header, so that layout and constant cannot part.
class SizeCheck {
 public:
  SizeCheck(const base::ByteWriter& out, size_t promised)
      : out_(out), end_(out.size() + promised) {}
  ~SizeCheck() { SF_CHECK(out_.size() == end_); }

 private:
  const base::ByteWriter& out_;
  size_t end_;
};

void type(FrameType value, base::ByteWriter& out) {
  out.u8(static_cast<uint8_t>(value));
}

void signature(const Signature& value, base::ByteWriter& out) {
  out.u8(value.kind);
  out.u8(value.data_type);
  out.u8(value.reduce_op);
  out.u8(0);
  out.u32(value.root);
  out.u64(value.count);
  out.bytes(value.group_tail);
  out.u64(0);
}

uint8_t status_flags(const StatusFrame& frame) {
  SF_CHECK(!frame.wants_answer || !frame.is_unknown_group);
  if (frame.wants_answer) return kStatusWantsAnswer;
  return frame.is_unknown_group ? kStatusUnknownGroup : 0;
}

}  // namespace

void encode_data_header(const DataFrame& frame, base::ByteWriter& out) {
  const SizeCheck check(out, encoded_bytes(frame));
  SF_CHECK(frame.bytes.size() <= UINT16_MAX);
  uint8_t flags = 0;
  if (frame.signature) flags |= kDataHasSignature;
  if (frame.wants_ack_now) flags |= kDataWantsAckNow;
  if (frame.is_eager) flags |= kDataIsEager;
  if (frame.is_announced) flags |= kDataIsAnnounced;
  if (frame.key.channel == Channel::kPointToPoint) flags |= kDataPointToPoint;
  type(FrameType::kData, out);
  out.u8(flags);
  out.u16(static_cast<uint16_t>(frame.bytes.size()));
  out.u32(frame.key.slot);
  out.u64(frame.message_id);
  out.u64(frame.key.group);
  out.u64(frame.key.operation);
  out.u64(frame.message_length);
  out.u64(frame.offset);
  if (frame.signature) signature(*frame.signature, out);
}

void encode(const AckFrame& frame, base::ByteWriter& out) {
  const SizeCheck check(out, encoded_bytes(frame));
  SF_CHECK(frame.bitmap.size() <= AckFrame::kBitmapBytesMax);
  type(FrameType::kAck, out);
  out.u8(static_cast<uint8_t>(frame.bitmap.size()));
  out.u16(frame.path.value);
  out.u64(frame.largest);
  out.u32(frame.delay_us);
  out.u32(frame.ce_count);
  out.bytes(frame.bitmap);
}

void encode(const CreditFrame& frame, base::ByteWriter& out) {
  const SizeCheck check(out, encoded_bytes(frame));
  type(FrameType::kCredit, out);
  out.u64(frame.eager_limit);
  out.u64(frame.window);
  out.u32(frame.serial);
  out.u64(frame.announced_limit);
}

void encode(const GrantFrame& frame, base::ByteWriter& out) {
  const SizeCheck check(out, encoded_bytes(frame));
  type(FrameType::kGrant, out);
  const bool is_point_to_point = frame.key.channel == Channel::kPointToPoint;
  out.u8((is_point_to_point ? kGrantPointToPoint : 0) | (frame.is_pull ? kGrantIsPull : 0));
  out.u32(frame.key.slot);
  out.u64(frame.key.group);
  out.u64(frame.key.operation);
  out.u64(frame.granted);
  out.u64(frame.grant_id);
}

void encode(const ConfirmFrame& frame, base::ByteWriter& out) {
  const SizeCheck check(out, encoded_bytes(frame));
  type(FrameType::kConfirm, out);
  out.u64(frame.challenge);
}

void encode(const ConfirmEchoFrame& frame, base::ByteWriter& out) {
  const SizeCheck check(out, encoded_bytes(frame));
  type(FrameType::kConfirmEcho, out);
  out.u64(frame.challenge);
}

void encode(const PingFrame& frame, base::ByteWriter& out) {
  const SizeCheck check(out, encoded_bytes(frame));
  type(FrameType::kPing, out);
}

void encode(const StatusFrame& frame, base::ByteWriter& out) {
  const SizeCheck check(out, encoded_bytes(frame));
  type(FrameType::kStatus, out);
  out.u8(status_flags(frame));
  out.u64(frame.group);
  out.u64(frame.operation);
  signature(frame.signature, out);
}

void encode(const AbortFrame& frame, base::ByteWriter& out) {
  const SizeCheck check(out, encoded_bytes(frame));
  SF_CHECK(frame.reason.size() <= AbortFrame::kReasonBytesMax);
  type(FrameType::kAbort, out);
  out.u8(frame.code);
  out.u16(static_cast<uint16_t>(frame.reason.size()));
  out.u64(frame.group);
  out.bytes(frame.group_tail);
  out.bytes(base::as_bytes(frame.reason));
}

void encode(const GoodbyeFrame& frame, base::ByteWriter& out) {
  const SizeCheck check(out, encoded_bytes(frame));
  type(FrameType::kGoodbye, out);
}

void encode(const EpochFrame& frame, base::ByteWriter& out) {
  const SizeCheck check(out, encoded_bytes(frame));
  type(FrameType::kEpoch, out);
  out.u32(frame.epoch);
  out.bytes(frame.public_key);
}

}  // namespace securefabric::wire
