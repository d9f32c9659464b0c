// What the transport and its user (the collective room, or a test) say to each other about
// messages.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/bytes.h"
#include "base/ids.h"
#include "base/result.h"
#include "base/socket_address.h"
#include "crypto/secret.h"
#include "wire/frames.h"

namespace securefabric::transport {

// Names a send or a receive to the one who posted it; the transport only hands it back.
using Token = uint64_t;

// Takes verified plaintext of one message, each byte exactly once, in any order of fragments.
// Engine thread. Fragments start and end at multiples of kFragmentAlignment or at the end.
class FragmentSink {
 public:
  virtual ~FragmentSink() = default;
  virtual void place(uint64_t offset, base::Bytes bytes) = 0;
};

// A message to send. One of at most kCopiedMessageBytesMax bytes is copied at once, if there is
// credit for it, and reports nothing. The bytes of others must stay readable until SendDelivered or
// withdraw_group, and unchanged until the peer is known to have them.
struct SendRequest {
  wire::MessageKey key;       // names the message to the peer
  wire::Signature signature;  // what this rank believes the operation to be
  base::Bytes bytes;          // may be empty
  Token token = 0;            // handed back with SendDelivered; unused for copied messages
  bool is_passed_on = false;  // just received, or summed up with what was; still in the cache
};

// Where an inbound message goes.
struct PostedReceive {
  Token token = 0;               // handed back with ReceiveCompleted
  FragmentSink* sink = nullptr;  // must live until ReceiveCompleted or withdraw_group
  uint64_t length = 0;           // bytes expected; a different message_length is a mismatch
  wire::Signature signature;     // expected; a different one is a mismatch
};

struct Match {
  enum class Verdict : uint8_t {
    kHold,     // no receive is posted yet; the matcher may attach one to (peer, message_id) later
    kPosted,   // `receive` is for this message: it is the transport's until ReceiveCompleted
    kDiscard,  // nobody will ever want it: its group is gone
  };
  Verdict verdict = Verdict::kHold;
  PostedReceive receive;  // for kPosted
};

// Asked when a message begins to arrive. Engine thread; must not call back into the endpoint.
class ReceiveMatcher {
 public:
  virtual ~ReceiveMatcher() = default;
  // Says what to do with a message. `signature` is null while the fragment at offset 0 is missing;
  // a held message is offered again when it arrives.
  virtual Match match(base::Rank peer, uint64_t message_id, const wire::MessageKey& key,
                      uint64_t length, const wire::Signature* signature) = 0;
};

// Everything about a peer that its signed roster entry says, verified by the caller.
struct PeerDescription {
  base::Rank rank;                             // the claimed and certified rank
  base::BootId boot_id{};                      // names this incarnation of the process
  std::vector<uint8_t> public_key;             // X25519, 32 bytes
  base::Spi spi_base;                          // its SPI for rank r is spi_base + r
  std::vector<base::SocketAddress> addresses;  // one per socket, in the order of path_id
  size_t datagram_bytes_max = 0;               // largest datagram it takes
  std::vector<uint8_t> entry;                  // the bytes of the entry, as published
  // What ML-KEM-768 has agreed with this peer, 32 bytes; null where the job's policy has no KEM.
  // Gone when the link's keys are derived.
  std::shared_ptr<const crypto::SecretBuffer> kem_secret;
};

// --- Events: what the endpoint reports, in the order in which it happened ---

// Keys for this rank are needed: answer with install_peer or fail_peer. Also reported of a peer
// that is known and is needed now: other engines may have to link it, too. A hint: somebody,
// whoever it is, uses its SPI. Worth one look-up; answer with learn_peer or not at all.
struct PeerWanted {
  base::Rank peer;
  bool is_hint = false;
};
// The peer has every byte of a large message.
struct SendDelivered {
  Token token = 0;
};
struct ReceiveCompleted {
  Token token = 0;
};
// The message that met a posted receive is not what this rank expects. The receive stays posted
// until withdrawn; what the peer sends for it is dropped.
struct MessageMismatch {
  base::Rank peer;
  Token token = 0;                           // of the posted receive
  wire::MessageKey key;                      // of the message
  uint64_t length = 0;                       // what the peer sends, bytes
  std::optional<wire::Signature> signature;  // what the peer believes the operation to be
};
// Nothing will be sent to or received from this peer any more.
struct PeerFailed {
  base::Rank peer;
  base::Error error;
};
// The peer has left in good order. Sends that it has not acknowledged are forgotten.
struct PeerLeft {
  base::Rank peer;
};
struct GroupAborted {
  base::Rank peer;
  uint64_t group = 0;            // wire id
  wire::GroupTail group_tail{};  // the rest of the digest
  base::Error error;             // the peer's reason
};
struct StatusReceived {
  base::Rank peer;
  wire::StatusFrame status;
};

using Event = std::variant<PeerWanted, SendDelivered, ReceiveCompleted, MessageMismatch, PeerFailed,
                           PeerLeft, GroupAborted, StatusReceived>;

}  // namespace securefabric::transport
