// The frames inside the ciphertext, as typed values. PROTOCOL.md §5 has the byte layouts.
//
// Encoding writes into a ByteWriter whose room the caller has checked with `encoded_bytes`.
// Decoding is in decode.h.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <variant>

#include "base/bytes.h"
#include "base/ids.h"

namespace securefabric::wire {

enum class FrameType : uint8_t {
  kPadding = 0,      // zeros up to the end of the packet
  kData = 1,         // a fragment of a message
  kAck = 2,          // what arrived on one path
  kCredit = 3,       // how much the peer may send before a receive is posted for it
  kGrant = 4,        // a receive is posted: the rest of this message may be sent
  kConfirm = 5,      // validates a path: please echo this challenge
  kConfirmEcho = 6,  // the echo
  kPing = 7,         // asks for an ack, nothing else
  kStatus = 8,       // which operation this rank is at, and whether the peer should tell the same
  kAbort = 9,        // this rank has given a group up
  kGoodbye = 10,     // this process leaves in good order
  kEpoch = 11,       // half of the key exchange for the link's next epoch
};

// Which matching rules a message follows.
enum class Channel : uint8_t {
  kCollective = 0,    // exact match by key
  kPointToPoint = 1,  // send/recv: `operation` counts messages per (peer, tag), `slot` is the tag
};

// Names a message between two peers in one direction. Unique while the message lives.
struct MessageKey {
  Channel channel = Channel::kCollective;  // see Channel
  uint64_t group = 0;                      // wire id of the process group
  uint64_t operation = 0;                  // sequence number of the operation in the group
  uint32_t slot = 0;                       // which message of the operation
  auto operator<=>(const MessageKey&) const = default;
};

// Bytes 8 to 31 of the digest of a group's identity. The first 8 are its wire id: those who share
// an id by chance or by somebody's work do not share these.
using GroupTail = std::array<uint8_t, 24>;

// What a rank believes the operation to be, and in which group. Both ends compare; a difference is
// an error that names both sides. The values are those of collective/types.h, which this room does
// not know.
struct Signature {
  uint8_t kind = 0;        // OperationKind
  uint8_t data_type = 0;   // DataType
  uint8_t reduce_op = 0;   // ReduceOp
  uint32_t root = 0;       // group rank of the root, 0 where there is none
  uint64_t count = 0;      // elements of the whole operation
  GroupTail group_tail{};  // of the group that the operation runs in
  bool operator==(const Signature&) const = default;
};
// With 8 zeros at the end, so that what follows stays aligned to the cipher's blocks.
inline constexpr size_t kSignatureBytes = 48;

// One fragment. `bytes` points into the packet and is valid only while that is.
struct DataFrame {
  MessageKey key;                      // which message
  uint64_t message_id = 0;             // per sender and peer, never reused: tells old from new
  uint64_t message_length = 0;         // bytes of the whole message
  uint64_t offset = 0;                 // of this fragment in the message, bytes
  std::optional<Signature> signature;  // present in the fragment at offset 0
  bool wants_ack_now = false;          // the sender's operation waits for the ack
  bool is_eager = false;               // the message was charged to the eager credit
  base::Bytes bytes;                   // may be empty: a request to send, or an empty message
  bool is_announced = false;           // the message was counted against the announcements
  uint64_t end() const { return offset + bytes.size(); }
};
// The fixed part. 48 keeps what follows aligned to the cipher's blocks.
inline constexpr size_t kDataFrameBytes = 48;

struct AckFrame {
  static constexpr size_t kBitmapBytesMax = 128;  // 1024 packets below the largest
  base::PathId path;                              // of the packets that are acknowledged
  base::PacketNumber largest = 0;                 // largest packet number that arrived
  uint32_t delay_us = 0;                          // between its arrival and this ack
  uint32_t ce_count = 0;                          // packets on this path marked CE, modulo 2^32
  // Bit i (least significant first) of byte j says that packet largest - 1 - (8 * j + i) arrived.
  // What it leaves out below kBitmapBytesMax bytes has arrived.
  base::Bytes bitmap;
};
inline constexpr size_t kAckFrameBytes = 20;

struct CreditFrame {
  uint64_t eager_limit = 0;  // cumulative charge up to which the peer may send eager messages
  uint64_t window = 0;       // bytes that the peer may have in flight to the sender of this
  uint32_t serial = 0;       // counts the sender's credits: an overtaken one is told from a new one
  uint64_t announced_limit = 0;  // cumulative number of messages that the peer may announce
};
inline constexpr size_t kCreditFrameBytes = 29;

struct GrantFrame {
  MessageKey key;         // of the message
  uint64_t granted = 0;   // bytes from offset 0 that may be sent
  uint64_t grant_id = 0;  // counts the receiver's grants: a resent grant is told from a new one
  bool is_pull = false;   // a receive waits for the message, which may wait for credit; else void
};
inline constexpr size_t kGrantFrameBytes = 38;

struct ConfirmFrame {
  uint64_t challenge = 0;  // random
};
struct ConfirmEchoFrame {
  uint64_t challenge = 0;  // as it came
};
inline constexpr size_t kConfirmFrameBytes = 9;

struct PingFrame {};
inline constexpr size_t kPingFrameBytes = 1;

struct StatusFrame {
  uint64_t group = 0;      // wire id
  uint64_t operation = 0;  // newest operation this rank has started, or the one asked about
  // Of that operation. When it has not been started, only the group is there.
  Signature signature;
  bool wants_answer = false;      // the peer should send its own status for the same operation
  bool is_unknown_group = false;  // an answer: this rank knows no such group; nothing else is said
};
inline constexpr size_t kStatusFrameBytes = 18 + kSignatureBytes;

struct AbortFrame {
  static constexpr size_t kReasonBytesMax = 512;
  uint64_t group = 0;      // wire id
  uint8_t code = 0;        // base::ErrorCode of the cause
  std::string reason;      // for people; printable, cut at kReasonBytesMax
  GroupTail group_tail{};  // the rest of the group's digest
};
inline constexpr size_t kAbortFrameBytes = 36;  // without the reason

struct GoodbyeFrame {};
inline constexpr size_t kGoodbyeFrameBytes = 1;

struct EpochFrame {
  uint32_t epoch = 0;                    // that it leads to; never 0
  std::array<uint8_t, 32> public_key{};  // X25519, made for this epoch of this link alone
};
inline constexpr size_t kEpochFrameBytes = 37;

using Frame =
    std::variant<DataFrame, AckFrame, CreditFrame, GrantFrame, ConfirmFrame, ConfirmEchoFrame,
                 PingFrame, StatusFrame, AbortFrame, GoodbyeFrame, EpochFrame>;

// Frame headers are copied into the packet; the bytes of a DataFrame are not: they are sealed
// straight from the caller's memory behind what this writes.
void encode_data_header(const DataFrame& frame, base::ByteWriter& out);
void encode(const AckFrame& frame, base::ByteWriter& out);
void encode(const CreditFrame& frame, base::ByteWriter& out);
void encode(const GrantFrame& frame, base::ByteWriter& out);
void encode(const ConfirmFrame& frame, base::ByteWriter& out);
void encode(const ConfirmEchoFrame& frame, base::ByteWriter& out);
void encode(const PingFrame& frame, base::ByteWriter& out);
void encode(const StatusFrame& frame, base::ByteWriter& out);
void encode(const AbortFrame& frame, base::ByteWriter& out);
void encode(const GoodbyeFrame& frame, base::ByteWriter& out);
void encode(const EpochFrame& frame, base::ByteWriter& out);

inline size_t encoded_bytes(const DataFrame& f) {  // without the fragment's bytes
  return kDataFrameBytes + (f.signature ? kSignatureBytes : 0);
}
inline size_t encoded_bytes(const AckFrame& f) {
  return kAckFrameBytes + f.bitmap.size();
}
inline size_t encoded_bytes(const CreditFrame&) {
  return kCreditFrameBytes;
}
inline size_t encoded_bytes(const GrantFrame&) {
  return kGrantFrameBytes;
}
inline size_t encoded_bytes(const ConfirmFrame&) {
  return kConfirmFrameBytes;
}
inline size_t encoded_bytes(const ConfirmEchoFrame&) {
  return kConfirmFrameBytes;
}
inline size_t encoded_bytes(const PingFrame&) {
  return kPingFrameBytes;
}
inline size_t encoded_bytes(const StatusFrame&) {
  return kStatusFrameBytes;
}
inline size_t encoded_bytes(const AbortFrame& f) {
  return kAbortFrameBytes + f.reason.size();
}
inline size_t encoded_bytes(const GoodbyeFrame&) {
  return kGoodbyeFrameBytes;
}
inline size_t encoded_bytes(const EpochFrame&) {
  return kEpochFrameBytes;
}

}  // namespace securefabric::wire
