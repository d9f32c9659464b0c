// Preallocated room for one recvmmsg: what the kernel writes, and what it means.
//
// One object serves all sockets of an engine in turn, so that its bytes stay in the cache. A burst
// that GRO joined arrives in one buffer, with the length of its segments beside it.
#pragma once

#include <sys/socket.h>
#include <time.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/bytes.h"
#include "base/ecn.h"
#include "base/socket_address.h"
#include "net/address.h"

namespace securefabric::net {

// Invariant: `bytes` is not empty and 1 <= segment_bytes <= bytes.size(). All segments have
// `segment_bytes` but the last, which may be shorter. Valid until the buffers receive again.
struct ReceivedBurst {
  base::Bytes bytes;                   // one datagram, or several from one sender joined by GRO
  size_t segment_bytes = 0;            // length of each datagram in `bytes`
  base::SocketAddress from;            // as the IP header claims: not proven
  base::Ecn ecn = base::Ecn::kNotEct;  // of all datagrams in `bytes`: GRO joins only equal ones
  int64_t stamped_ns = 0;  // when the kernel got the first, on CLOCK_REALTIME; 0: unknown
};

// What one recvmmsg brought, apart from its bursts.
struct ReceiveOutcome {
  std::span<const ReceivedBurst> bursts;  // in order of arrival
  uint32_t truncated = 0;                 // reads longer than a buffer: dropped
  uint32_t empty = 0;                     // datagrams without payload: dropped
  // The socket's SO_RXQ_OVFL count as the last read saw it, modulo 2^32; `has_drop_count` tells
  // whether a read carried one (the kernel attaches it only once it is not zero).
  uint32_t drop_count = 0;
  bool has_drop_count = false;
};

class ReceiveBuffers {
 public:
  // Longer than any UDP payload (65,527 bytes with IPv6), so that nothing is ever cut short.
  static constexpr size_t kBufferBytes = 65'536;
  static constexpr size_t kBuffersMax = 16;  // 1 MB: half of a typical level-2 cache

  // `count`: reads per syscall, in [1, kBuffersMax].
  explicit ReceiveBuffers(size_t count = 8);
  ReceiveBuffers(ReceiveBuffers&&) = default;
  ReceiveBuffers& operator=(ReceiveBuffers&&) = default;

  size_t count() const { return headers_.size(); }

  // The headers to hand to recvmmsg. Ends the validity of earlier bursts.
  std::span<mmsghdr> prepare();
  // Makes bursts of the first `received` headers, which the kernel has filled.
  ReceiveOutcome decode(size_t received);

 private:
  // Holds UDP_GRO, IP_TOS or IPV6_TCLASS, and SO_RXQ_OVFL, one integer each; and SO_TIMESTAMPNS.
  static constexpr size_t kControlBytes =
      3 * CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(timespec));
  struct alignas(cmsghdr) Control {
    uint8_t bytes[kControlBytes];  // control messages as the kernel lays them out
  };

  std::unique_ptr<uint8_t[]> storage_;  // count() buffers of kBufferBytes
  std::vector<NativeAddress> names_;    // sender of each read
  std::vector<Control> controls_;       // control messages of each read
  std::vector<iovec> pieces_;           // points each header at its buffer
  std::vector<mmsghdr> headers_;        // points into the four above
  std::vector<ReceivedBurst> bursts_;   // what `decode` made; points into storage_
};

}  // namespace securefabric::net
