// One bound, unconnected, non-blocking UDP socket, shared by all peers.
//
// Out: a burst (equal segments, the last may be shorter) is cut into pieces that the kernel
// accepts, and each piece goes out by the best SendMode that its destination is known to take. A
// refusal steps one mode down and sends the same piece again, so no burst is lost to it. In: one
// recvmmsg into ReceiveBuffers; each read may be a burst that GRO joined.
//
// Errors: only what makes the socket itself useless is fatal. What one destination causes counts as
// loss, which the transport repairs or reports. Nothing here allocates after `bind`.
// Threads: none of its own; only whoever drives the engine may call a member.
#pragma once

#include <cstdint>
#include <span>

#include "base/bytes.h"
#include "base/result.h"
#include "base/socket_address.h"
#include "net/file_descriptor.h"
#include "net/receive_buffers.h"
#include "net/send_modes.h"
#include "net/socket_calls.h"

namespace securefabric::net {

struct UdpSocketOptions {
  // What to ask for, in bytes of kernel memory; an skb costs about twice its payload. The kernel
  // grants at most net.core.{r,w}mem_max to a process without CAP_NET_ADMIN.
  uint32_t receive_buffer_bytes = 16u << 20;
  uint32_t send_buffer_bytes = 8u << 20;
  bool use_gso = true;                 // false: start with SendMode::kBatched everywhere
  bool use_gro = true;                 // false: each read is one datagram
  const SocketCalls* calls = nullptr;  // a test's seam, outlives the socket; null: the kernel
};

// What the kernel granted of what `bind` asked for; none of it is needed for correctness.
struct SocketGrants {
  uint32_t receive_buffer_bytes = 0;  // usable, as asked for (the kernel accounts the double)
  uint32_t send_buffer_bytes = 0;     // the same for sending
  bool has_gso = false;               // UDP_SEGMENT is known; a device may still refuse it
  bool has_gro = false;               // reads may carry several segments
  bool has_ecn = false;               // sends ECT(0) and reports the bits of what arrives
  bool has_drop_count = false;        // SO_RXQ_OVFL is reported
  bool has_timestamps = false;        // what arrives says when: see ReceivedBurst::stamped_ns
  bool has_mtu_probing = false;       // never fragments, and ignores the kernel's path MTU guess
};

// Since `bind`; only ever grow.
struct SocketCounters {
  uint64_t sent_segments = 0;      // datagrams that the kernel took
  uint64_t send_calls = 0;         // sendmsg and sendmmsg, refused ones too
  uint64_t gso_refused = 0;        // pieces that had to fall back from kSegmented
  uint64_t batch_refused = 0;      // pieces that had to fall back from kBatched
  uint64_t send_would_block = 0;   // bursts cut short by a full send buffer
  uint64_t send_unreachable = 0;   // bursts cut short by an error of their destination
  uint64_t send_too_long = 0;      // bursts cut short by EMSGSIZE
  uint64_t received_bursts = 0;    // reads, joined by GRO or not
  uint64_t receive_calls = 0;      // recvmmsg, empty ones too
  uint64_t receive_truncated = 0;  // reads that did not fit a buffer: dropped
  uint64_t receive_empty = 0;      // datagrams without payload: dropped
  uint64_t receive_errors = 0;     // recvmmsg failed with an error that passes
  uint64_t kernel_drops = 0;       // datagrams lost to this socket's full receive buffer
};

enum class SendOutcome : uint8_t {
  kSent,            // all of it
  kWouldBlock,      // the send buffer is full: poll for writability, then send the rest
  kUnreachable,     // route, neighbour, firewall or memory: treat the rest as lost
  kMessageTooLong,  // a segment exceeds the MTU of its device (EMSGSIZE): the rest was not sent
  kFatal,           // the socket is unusable
};

struct SendResult {
  SendOutcome outcome = SendOutcome::kSent;
  size_t segments_taken = 0;  // from the front of the burst; all of them when kSent
  int error_number = 0;       // errno of the first segment that was not taken; 0 when kSent
};

class UdpSocket {
 public:
  // Segments per UDP_SEGMENT send: newer kernels take 128, every kernel since 4.18 takes 64.
  static constexpr size_t kSegmentsPerSendMax = 64;
  // Messages per sendmmsg.
  static constexpr size_t kMessagesPerBatchMax = 32;
  // The largest UDP payload of one send, segmented or not: 65,535 less IPv4 and UDP headers.
  static constexpr size_t kSendBytesMax = 65'507;

  // Port 0 picks a free one. Errors: kConfig when the address cannot be bound, else kSystem.
  static base::Result<UdpSocket> bind(const base::SocketAddress& local,
                                      const UdpSocketOptions& options = {});

  // Sends `burst` as datagrams of `segment_bytes` (the last may be shorter). Never blocks; a burst
  // of any length is cut as needed. Needs: burst not empty, segment_bytes >= 1.
  SendResult send_burst(const base::SocketAddress& to, base::Bytes burst, size_t segment_bytes);

  // Reads at most buffers.count() bursts; none when nothing waits. The span lives in `buffers`,
  // until they receive again. Error: kSystem, the socket is unusable.
  base::Result<std::span<const ReceivedBurst>> receive(ReceiveBuffers& buffers);

  int fd() const { return fd_.value(); }  // for the Poller; stays owned by this object
  const base::SocketAddress& local_address() const { return local_; }
  const SocketGrants& grants() const { return grants_; }
  const SocketCounters& counters() const { return counters_; }
  SendMode send_mode(const base::SocketAddress& to) const { return modes_.mode_for(to); }

 private:
  UdpSocket(FileDescriptor fd, const base::SocketAddress& local, const SocketGrants& grants,
            const UdpSocketOptions& options);

  // What one syscall achieved.
  struct Attempt {
    size_t bytes_taken = 0;  // whole segments from the front
    int error_number = 0;    // 0 when bytes_taken > 0
  };

  Attempt attempt(SendMode mode, const NativeAddress& to, base::Bytes rest, size_t segment_bytes);
  Attempt send_segmented(const NativeAddress& to, base::Bytes rest, size_t segment_bytes);
  Attempt send_batched(const NativeAddress& to, base::Bytes rest, size_t segment_bytes);
  Attempt send_single(const NativeAddress& to, base::Bytes rest, size_t segment_bytes);
  void count_refusal(SendMode mode);
  SendResult give_up(SendResult result, int error_number);
  void count_received(const ReceiveOutcome& outcome);

  FileDescriptor fd_;             // the socket
  base::SocketAddress local_;     // as bound: with the real port
  SocketGrants grants_;           // fixed by `bind`
  const SocketCalls* calls_;      // not owned, never null
  SendModes modes_;               // fallbacks learnt so far
  SocketCounters counters_;       // see there
  uint32_t last_drop_count_ = 0;  // SO_RXQ_OVFL as last seen, to extend it beyond 32 bits
};

}  // namespace securefabric::net
