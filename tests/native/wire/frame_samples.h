// One value of every frame with its golden bytes, and random frames: shared by the tests of this
// room and by the generator of the fuzz corpus.
#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/random.h"
#include "wire/frames.h"

namespace securefabric::wire {

using ByteVector = std::vector<uint8_t>;

// What backs the spans of a frame. Static, so that samples can be passed by value.
inline base::Bytes sample_bytes() {
  static const ByteVector bytes = [] {
    ByteVector filled(4096);
    for (size_t i = 0; i < filled.size(); ++i) filled[i] = static_cast<uint8_t>(i + 1);
    return filled;
  }();
  return bytes;
}

inline void append(const Frame& frame, ByteVector& out) {
  std::visit(
      [&out](const auto& value) {
        const size_t at = out.size();
        out.resize(at + encoded_bytes(value));
        base::ByteWriter writer(base::MutableBytes(out).subspan(at));
        if constexpr (std::is_same_v<std::decay_t<decltype(value)>, DataFrame>) {
          encode_data_header(value, writer);
          out.insert(out.end(), value.bytes.begin(), value.bytes.end());
        } else {
          encode(value, writer);
        }
      },
      frame);
}

inline ByteVector encoded(const Frame& frame) {
  ByteVector out;
  append(frame, out);
  return out;
}

inline EpochFrame sample_epoch() {
  EpochFrame frame;
  frame.epoch = 3;
  for (size_t i = 0; i < frame.public_key.size(); ++i) {
    frame.public_key[i] = static_cast<uint8_t>(i);
  }
  return frame;
}

struct Sample {
  const char* name;    // of the frame and what is special about it
  Frame frame;         // the value
  const char* golden;  // its bytes on the wire
};

inline GroupTail sample_tail() {
  GroupTail tail;
  for (size_t i = 0; i < tail.size(); ++i) tail[i] = static_cast<uint8_t>(0xA0 + i);
  return tail;
}

inline const Signature kSampleSignature{1, 2, 3, 0x0A0B0C0D, 0x1112131415161718u, sample_tail()};

inline std::vector<Sample> samples() {
  const MessageKey key{Channel::kCollective, 0x2122232425262728u, 0x3132333435363738u, 0x41424344};
  MessageKey tagged = key;
  tagged.channel = Channel::kPointToPoint;
  DataFrame first{key, 5, 100, 0, kSampleSignature, false, true, sample_bytes().first(3)};
  DataFrame later{tagged, 6, 100, 96, std::nullopt, true, false, sample_bytes().first(4)};
  DataFrame request{tagged, 7, 1 << 20, 0, kSampleSignature, false, false, {}, true};
  return {
      {"data_first", first,
       "010500034142434400000000000000052122232425262728313233343536373800000000000000640000000000"
       "000000010203000a0b0c0d1112131415161718"
       "a0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b70000000000000000"
       "010203"},
      {"data_later", later,
       "010a00044142434400000000000000062122232425262728313233343536373800000000000000640000000000"
       "00006001020304"},
      {"data_request", request,
       "011900004142434400000000000000072122232425262728313233343536373800000000001000000000000000"
       "000000010203000a0b0c0d1112131415161718"
       "a0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b70000000000000000"},
      {"ack", AckFrame{base::PathId{0x0102}, 0x0304, 0x05060708, 9, sample_bytes().first(2)},
       "020201020000000000000304050607080000000901"
       "02"},
      {"credit",
       CreditFrame{0x0102030405060708u, 0x1112131415161718u, 0x21222324u, 0x3132333435363738u},
       "03010203040506070811121314151617182"
       "12223243132333435363738"},
      {"grant", GrantFrame{tagged, 0x5152, 0x6162},
       "0401414243442122232425262728313233343536373800000000000051520000000000006162"},
      {"pull", GrantFrame{key, 0x5152, 0x6162, true},
       "0402414243442122232425262728313233343536373800000000000051520000000000006162"},
      {"confirm", ConfirmFrame{0x0102030405060708u}, "050102030405060708"},
      {"confirm_echo", ConfirmEchoFrame{0x0102030405060708u}, "060102030405060708"},
      {"ping", PingFrame{}, "07"},
      {"status", StatusFrame{0x0102, 0x0304, kSampleSignature, true},
       "080100000000000001020000000000000304010203000a0b0c0d1112131415161718"
       "a0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b70000000000000000"},
      {"status_unknown_group", StatusFrame{0x0102, 0x0304, {}, false, true},
       "080200000000000001020000000000000304"
       "000000000000000000000000000000000000000000000000"
       "000000000000000000000000000000000000000000000000"},
      {"abort", AbortFrame{0x0102, 4, "why", sample_tail()},
       "090400030000000000000102"
       "a0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7"
       "776879"},
      {"goodbye", GoodbyeFrame{}, "0a"},
      {"epoch", sample_epoch(),
       "0b000000030001020304050607"
       "08090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"},
  };
}

inline MessageKey random_key(base::Random& random) {
  return {random.chance(0.5) ? Channel::kCollective : Channel::kPointToPoint, random.next(),
          random.next(), static_cast<uint32_t>(random.next())};
}

inline GroupTail random_tail(base::Random& random) {
  GroupTail tail;
  random.fill(tail);
  return tail;
}

inline Signature random_signature(base::Random& random) {
  const auto byte = [&random] { return static_cast<uint8_t>(random.next()); };
  return {byte(),        byte(),
          byte(),        static_cast<uint32_t>(random.next()),
          random.next(), random_tail(random)};
}

inline StatusFrame random_status(base::Random& random) {
  if (random.chance(0.2)) return {random.next(), random.next(), {}, false, true};
  return {random.next(), random.next(), random_signature(random), random.chance(0.5)};
}

inline DataFrame random_data(base::Random& random) {
  DataFrame frame;
  frame.key = random_key(random);
  frame.message_id = random.next();
  frame.bytes = sample_bytes().first(random.below(300));
  // An empty fragment stands at the start of its message.
  frame.offset = frame.bytes.empty() || random.chance(0.3) ? 0 : random.next() >> 8;
  frame.message_length = frame.end() + random.below(1000);
  if (frame.offset == 0) frame.signature = random_signature(random);
  frame.wants_ack_now = random.chance(0.5);
  frame.is_eager = random.chance(0.5);
  frame.is_announced = !frame.is_eager && random.chance(0.5);
  return frame;
}

inline Frame random_frame(base::Random& random) {
  switch (random.below(11)) {
    case 0: return random_data(random);
    case 1:
      return AckFrame{base::PathId{static_cast<uint16_t>(random.next())}, random.next(),
                      static_cast<uint32_t>(random.next()), static_cast<uint32_t>(random.next()),
                      sample_bytes().first(random.below(AckFrame::kBitmapBytesMax + 1))};
    case 2:
      return CreditFrame{random.next(), random.next(), static_cast<uint32_t>(random.next()),
                         random.next()};
    case 3: return GrantFrame{random_key(random), random.next(), random.next(), random.chance(0.5)};
    case 4: return ConfirmFrame{random.next()};
    case 5: return ConfirmEchoFrame{random.next()};
    case 6: return PingFrame{};
    case 7: return random_status(random);
    case 8:
      return AbortFrame{random.next(), static_cast<uint8_t>(random.next()),
                        std::string(random.below(AbortFrame::kReasonBytesMax + 1), 'x'),
                        random_tail(random)};
    case 9: {
      EpochFrame frame = sample_epoch();
      frame.epoch = 1 + static_cast<uint32_t>(random.below(UINT32_MAX));
      for (uint8_t& byte : frame.public_key) byte = static_cast<uint8_t>(random.next());
      return frame;
    }
    default: return GoodbyeFrame{};
  }
}

}  // namespace securefabric::wire
