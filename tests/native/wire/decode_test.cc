#include "wire/decode.h"

#include <gtest/gtest.h>

#include "frame_samples.h"
#include "wire/flags.h"

namespace securefabric::wire {
namespace {

// Offsets in an encoded DATA frame.
constexpr size_t kFlagsAt = 1;
constexpr size_t kLengthAt = 2;
constexpr size_t kMessageLengthAt = 32;
constexpr size_t kOffsetAt = 40;

struct Decoded {
  std::vector<ByteVector> frames;  // encoded again: the simplest equality
  bool is_malformed = false;
};

Decoded decode(base::Bytes plaintext) {
  Decoded decoded;
  FrameDecoder decoder(plaintext);
  while (const auto frame = decoder.next()) decoded.frames.push_back(encoded(*frame));
  EXPECT_FALSE(decoder.next().has_value()) << "the end is final";
  decoded.is_malformed = decoder.is_malformed();
  return decoded;
}

bool is_malformed(base::Bytes plaintext) {
  const Decoded decoded = decode(plaintext);
  return decoded.is_malformed && decoded.frames.empty();
}

DataFrame data_of(const Frame& frame) {
  return std::get<DataFrame>(frame);
}

TEST(FrameDecoder, next__empty_packet_has_no_frames) {
  EXPECT_FALSE(decode({}).is_malformed);
  EXPECT_TRUE(decode({}).frames.empty());
}

TEST(FrameDecoder, next__round_trip_of_every_frame) {
  for (const Sample& sample : samples()) {
    const ByteVector bytes = encoded(sample.frame);
    const Decoded decoded = decode(bytes);
    EXPECT_FALSE(decoded.is_malformed) << sample.name;
    EXPECT_EQ(decoded.frames, std::vector<ByteVector>{bytes}) << sample.name;
  }
}

TEST(FrameDecoder, next__every_truncation_of_every_frame) {
  for (const Sample& sample : samples()) {
    const ByteVector bytes = encoded(sample.frame);
    for (size_t size = 1; size < bytes.size(); ++size) {
      EXPECT_TRUE(is_malformed(base::Bytes(bytes).first(size))) << sample.name << ' ' << size;
    }
  }
}

TEST(FrameDecoder, next__every_unknown_type) {
  for (int type = static_cast<int>(FrameType::kEpoch) + 1; type < 256; ++type) {
    const ByteVector bytes(64, static_cast<uint8_t>(type));
    EXPECT_TRUE(is_malformed(bytes)) << type;
  }
}

TEST(FrameDecoder, next__frames_before_the_malformed_one_are_returned) {
  ByteVector bytes = encoded(PingFrame{});
  bytes.push_back(0xFF);
  append(PingFrame{}, bytes);
  const Decoded decoded = decode(bytes);
  EXPECT_TRUE(decoded.is_malformed);
  EXPECT_EQ(decoded.frames.size(), 1u);
}

TEST(FrameDecoder, padding__ends_the_packet) {
  ByteVector bytes = encoded(PingFrame{});
  bytes.resize(100);
  EXPECT_FALSE(decode(bytes).is_malformed);
  EXPECT_EQ(decode(bytes).frames.size(), 1u);
}

TEST(FrameDecoder, padding__anything_but_zeros_is_malformed) {
  ByteVector bytes(100);
  bytes[99] = 7;
  EXPECT_TRUE(is_malformed(bytes));
}

TEST(FrameDecoder, data__fields_survive) {
  for (const Sample& sample : samples()) {
    if (!std::holds_alternative<DataFrame>(sample.frame)) continue;
    const DataFrame in = data_of(sample.frame);
    const ByteVector bytes = encoded(in);
    FrameDecoder decoder(bytes);
    const DataFrame out = data_of(*decoder.next());
    EXPECT_EQ(out.key, in.key);
    EXPECT_EQ(out.message_id, in.message_id);
    EXPECT_EQ(out.message_length, in.message_length);
    EXPECT_EQ(out.offset, in.offset);
    EXPECT_EQ(out.signature, in.signature);
    EXPECT_EQ(out.wants_ack_now, in.wants_ack_now);
    EXPECT_EQ(out.is_eager, in.is_eager);
    EXPECT_EQ(base::to_hex(out.bytes), base::to_hex(in.bytes));
  }
}

// Encodes a DATA frame and overwrites one field behind the encoder's back.
ByteVector data_with(const DataFrame& frame, size_t at, size_t width, uint64_t value) {
  ByteVector bytes = encoded(frame);
  for (size_t i = 0; i < width; ++i) {
    bytes[at + i] = static_cast<uint8_t>(value >> (8 * (width - 1 - i)));
  }
  return bytes;
}

TEST(FrameDecoder, data__fragment_outside_its_message) {
  const DataFrame later = data_of(samples()[1].frame);  // [96, 100) of 100
  EXPECT_FALSE(decode(encoded(later)).is_malformed);
  EXPECT_TRUE(is_malformed(data_with(later, kOffsetAt, 8, 97)));
  EXPECT_TRUE(is_malformed(data_with(later, kOffsetAt, 8, 101)));
  EXPECT_TRUE(is_malformed(data_with(later, kOffsetAt, 8, UINT64_MAX)));
  EXPECT_TRUE(is_malformed(data_with(later, kMessageLengthAt, 8, 99)));
  EXPECT_TRUE(is_malformed(data_with(later, kMessageLengthAt, 8, 0)));
}

TEST(FrameDecoder, data__unknown_flag) {
  const DataFrame later = data_of(samples()[1].frame);
  for (int bit = 0; bit < 8; ++bit) {
    if ((kDataFlags >> bit & 1) != 0) continue;
    EXPECT_TRUE(is_malformed(data_with(later, kFlagsAt, 1, uint64_t{1} << bit))) << bit;
  }
}

TEST(FrameDecoder, data__signature_only_and_always_at_offset_0) {
  const DataFrame first = data_of(samples()[0].frame);
  EXPECT_TRUE(is_malformed(data_with(first, kOffsetAt, 8, 16)));
  EXPECT_TRUE(is_malformed(data_with(first, kFlagsAt, 1, 0)));
  const DataFrame later = data_of(samples()[1].frame);
  EXPECT_TRUE(is_malformed(data_with(later, kOffsetAt, 8, 0)));
}

TEST(FrameDecoder, data__signature_with_reserved_byte) {
  const DataFrame first = data_of(samples()[0].frame);
  EXPECT_TRUE(is_malformed(data_with(first, kDataFrameBytes + 3, 1, 1)));
  for (size_t at = kSignatureBytes - 8; at < kSignatureBytes; ++at) {
    EXPECT_TRUE(is_malformed(data_with(first, kDataFrameBytes + at, 1, 1))) << at;
  }
}

TEST(FrameDecoder, data__empty_fragment_in_the_middle) {
  DataFrame later = data_of(samples()[1].frame);
  later.bytes = {};
  EXPECT_TRUE(is_malformed(encoded(later)));
  EXPECT_TRUE(is_malformed(data_with(data_of(samples()[1].frame), kLengthAt, 2, 0)));
}

TEST(FrameDecoder, ack__bitmap_too_long) {
  ByteVector bytes = encoded(AckFrame{});
  bytes[1] = AckFrame::kBitmapBytesMax + 1;
  bytes.resize(bytes.size() + 255, 1);
  EXPECT_TRUE(is_malformed(bytes));
}

TEST(FrameDecoder, grant__unknown_flag) {
  ByteVector bytes = encoded(GrantFrame{});
  bytes[1] = 4;
  EXPECT_TRUE(is_malformed(bytes));
}

TEST(FrameDecoder, status__unknown_flag_or_reserved_byte) {
  for (int flags = 3; flags < 256; ++flags) {
    ByteVector bytes = encoded(StatusFrame{});
    bytes[1] = static_cast<uint8_t>(flags);
    EXPECT_TRUE(is_malformed(bytes)) << flags;
  }
  ByteVector bytes = encoded(StatusFrame{});
  bytes[1 + 1 + 8 + 8 + 3] = 1;
  EXPECT_TRUE(is_malformed(bytes));
}

TEST(FrameDecoder, status__who_knows_no_such_group_says_nothing_else) {
  StatusFrame frame{1, 2, {}, false, true};
  EXPECT_FALSE(is_malformed(encoded(frame)));
  frame.signature = kSampleSignature;
  EXPECT_TRUE(is_malformed(encoded(frame)));
}

TEST(FrameDecoder, abort__reason_too_long) {
  ByteVector bytes = encoded(AbortFrame{});
  bytes[2] = 0x02;
  bytes[3] = 0x01;  // 513
  bytes.resize(bytes.size() + 513, 'x');
  EXPECT_TRUE(is_malformed(bytes));
}

TEST(FrameDecoder, abort__reason_is_made_printable) {
  const ByteVector bytes = encoded(AbortFrame{1, 0, "a\x1B[2J\n\xFF\x7F~ "});
  FrameDecoder decoder(bytes);
  EXPECT_EQ(std::get<AbortFrame>(*decoder.next()).reason, "a?[2J???~ ");
}

TEST(FrameDecoder, next__random_packets_round_trip) {
  for (uint64_t seed = 0; seed < 500; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    base::Random random(seed);
    std::vector<ByteVector> frames;
    ByteVector packet;
    for (uint64_t n = 1 + random.below(12); n > 0; --n) {
      frames.push_back(encoded(random_frame(random)));
      packet.insert(packet.end(), frames.back().begin(), frames.back().end());
    }
    packet.resize(packet.size() + random.below(40));
    const Decoded decoded = decode(packet);
    ASSERT_FALSE(decoded.is_malformed);
    ASSERT_EQ(decoded.frames, frames);
  }
}

// Whatever comes out of damaged bytes is a valid frame: it encodes, and decodes to itself.
TEST(FrameDecoder, next__damaged_packets_never_yield_half_a_frame) {
  for (uint64_t seed = 0; seed < 3000; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    base::Random random(seed);
    ByteVector packet;
    for (int n = 0; n < 3; ++n) append(random_frame(random), packet);
    for (uint64_t n = random.below(4); n > 0; --n) {
      packet[random.below(packet.size())] = static_cast<uint8_t>(random.next());
    }
    packet.resize(random.below(packet.size() + 1));
    for (const ByteVector& frame : decode(packet).frames) {
      const Decoded again = decode(frame);
      ASSERT_FALSE(again.is_malformed);
      ASSERT_EQ(again.frames, std::vector<ByteVector>{frame});
    }
  }
}

}  // namespace
}  // namespace securefabric::wire
