#include "net/udp_socket.h"

#include <netinet/in.h>
#include <netinet/udp.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "net/address.h"
#include "net/socket_options.h"
#include "net/system_error.h"

namespace securefabric::net {
namespace {

// Never raise SIGPIPE in the user's process, whatever the socket's state.
constexpr int kSendFlags = MSG_DONTWAIT | MSG_NOSIGNAL;

// The device or the kernel cannot do what the mode asks; a simpler mode may work. EINVAL also
// stands for "segment larger than the MTU" in kernels before 6.10: the simpler mode tells.
bool is_refusal(int error_number, SendMode mode) {
  // Of a plain or segmented send it is a firewall's; sandboxes may know no other send than those.
  if (error_number == EPERM) return mode == SendMode::kBatched;
  switch (error_number) {
    case EIO:
    case EINVAL:
    case ENOPROTOOPT:
    case EOPNOTSUPP:
    case ENOSYS: return true;
    default: return false;
  }
}

SendOutcome classify_send_error(int error_number) {
  switch (error_number) {
    case EAGAIN:
    case EINTR: return SendOutcome::kWouldBlock;
    case EMSGSIZE: return SendOutcome::kMessageTooLong;
    case EBADF:
    case ENOTSOCK:
    case EFAULT:
    case ENOSYS:
    case EPIPE: return SendOutcome::kFatal;
    default: return SendOutcome::kUnreachable;
  }
}

// What passes by itself: anything else would come again at once, and keep a core busy for nothing.
bool is_passing_receive_error(int error_number) {
  switch (error_number) {
    case EAGAIN:
    case EINTR:
    case ENOMEM:
    case ENOBUFS:
    case ECONNREFUSED:
    case ECONNRESET:
    case EHOSTUNREACH:
    case EHOSTDOWN:
    case ENETUNREACH:
    case ENETDOWN: return true;
    default: return false;
  }
}

// The kernel reads what these point to and never writes there.
msghdr make_header(const NativeAddress& to, iovec* piece) {
  msghdr header{};
  header.msg_name = const_cast<sockaddr*>(to.data());
  header.msg_namelen = to.size();
  header.msg_iov = piece;
  header.msg_iovlen = 1;
  return header;
}

iovec make_piece(base::Bytes bytes) {
  return {const_cast<uint8_t*>(bytes.data()), bytes.size()};
}

base::ErrorCode bind_error_code(int error_number) {
  const bool is_users_choice = error_number == EADDRINUSE || error_number == EADDRNOTAVAIL ||
                               error_number == EACCES || error_number == EAFNOSUPPORT ||
                               error_number == EINVAL;
  return is_users_choice ? base::ErrorCode::kConfig : base::ErrorCode::kSystem;
}

}  // namespace

base::Result<UdpSocket> UdpSocket::bind(const base::SocketAddress& local,
                                        const UdpSocketOptions& options) {
  const std::string action = "cannot bind a UDP socket to " + local.to_text();
  NativeAddress address(local);
  if (address.size() == 0) return base::Error{base::ErrorCode::kConfig, action};
  auto fd = FileDescriptor::open([&] {
    return ::socket(address.data()->sa_family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK,
                    IPPROTO_UDP);
  });
  if (!fd.is_open()) return system_error(action, errno, bind_error_code(errno));
  const SocketGrants grants = apply_socket_options(fd.value(), local.family(), options);
  if (::bind(fd.value(), address.data(), address.size()) != 0) {
    return system_error(action, errno, bind_error_code(errno));
  }
  socklen_t length = NativeAddress::capacity();
  if (::getsockname(fd.value(), address.data(), &length) != 0) return system_error(action, errno);
  return UdpSocket(std::move(fd), from_native(address.data()), grants, options);
}

UdpSocket::UdpSocket(FileDescriptor fd, const base::SocketAddress& local,
                     const SocketGrants& grants, const UdpSocketOptions& options)
    : fd_(std::move(fd)),
      local_(local),
      grants_(grants),
      calls_(options.calls != nullptr ? options.calls : &system_socket_calls()),
      modes_(grants.has_gso ? SendMode::kSegmented : SendMode::kBatched) {}

SendResult UdpSocket::send_burst(const base::SocketAddress& to, base::Bytes burst,
                                 size_t segment_bytes) {
  SF_CHECK(!burst.empty() && segment_bytes >= 1);
  SendResult result;
  if (to.family() != local_.family()) return give_up(result, EAFNOSUPPORT);
  const NativeAddress native(to);
  SendMode mode = modes_.mode_for(to);
  bool has_fallen_back = false;
  // Ends: each turn takes a segment, steps the mode down (twice at most) or returns.
  while (!burst.empty()) {
    // A piece of one segment asks for nothing special, so its failure says nothing about a mode.
    const SendMode used = burst.size() <= segment_bytes ? SendMode::kSingle : mode;
    const Attempt sent = attempt(used, native, burst, segment_bytes);
    if (sent.bytes_taken > 0) {
      // Learnt only from success, so that a probe beyond the MTU does not cost the fast mode.
      if (std::exchange(has_fallen_back, false)) modes_.remember(to, mode);
      const size_t segments = (sent.bytes_taken + segment_bytes - 1) / segment_bytes;
      result.segments_taken += segments;
      counters_.sent_segments += segments;
      burst = burst.subspan(sent.bytes_taken);
    } else if (used != SendMode::kSingle && is_refusal(sent.error_number, used)) {
      count_refusal(mode);
      mode = mode == SendMode::kSegmented ? SendMode::kBatched : SendMode::kSingle;
      has_fallen_back = true;
    } else {
      return give_up(result, sent.error_number);
    }
  }
  return result;
}

UdpSocket::Attempt UdpSocket::attempt(SendMode mode, const NativeAddress& to, base::Bytes rest,
                                      size_t segment_bytes) {
  ++counters_.send_calls;
  switch (mode) {
    case SendMode::kSegmented: return send_segmented(to, rest, segment_bytes);
    case SendMode::kBatched: return send_batched(to, rest, segment_bytes);
    case SendMode::kSingle: break;
  }
  return send_single(to, rest, segment_bytes);
}

UdpSocket::Attempt UdpSocket::send_segmented(const NativeAddress& to, base::Bytes rest,
                                             size_t segment_bytes) {
  const size_t segments = std::min(kSegmentsPerSendMax, kSendBytesMax / segment_bytes);
  if (segments <= 1) return send_single(to, rest, segment_bytes);
  iovec piece = make_piece(rest.first(std::min(rest.size(), segments * segment_bytes)));
  msghdr header = make_header(to, &piece);

  alignas(cmsghdr) uint8_t control[CMSG_SPACE(sizeof(uint16_t))] = {};
  header.msg_control = control;
  header.msg_controllen = sizeof(control);
  cmsghdr* const message = CMSG_FIRSTHDR(&header);
  message->cmsg_level = SOL_UDP;
  message->cmsg_type = UDP_SEGMENT;
  message->cmsg_len = CMSG_LEN(sizeof(uint16_t));
  const auto segment = static_cast<uint16_t>(segment_bytes);  // fits: two segments do
  std::memcpy(CMSG_DATA(message), &segment, sizeof(segment));

  if (calls_->sendmsg(fd(), &header, kSendFlags) < 0) return {0, errno};
  return {piece.iov_len, 0};
}

UdpSocket::Attempt UdpSocket::send_batched(const NativeAddress& to, base::Bytes rest,
                                           size_t segment_bytes) {
  std::array<iovec, kMessagesPerBatchMax> pieces;
  std::array<mmsghdr, kMessagesPerBatchMax> messages;
  unsigned count = 0;
  for (base::Bytes left = rest; !left.empty() && count < kMessagesPerBatchMax; ++count) {
    const size_t length = std::min(left.size(), segment_bytes);
    pieces[count] = make_piece(left.first(length));
    messages[count] = {make_header(to, &pieces[count]), 0};
    left = left.subspan(length);
  }
  const int sent = calls_->sendmmsg(fd(), messages.data(), count, kSendFlags);
  if (sent <= 0) return {0, sent < 0 ? errno : EAGAIN};
  return {std::min(rest.size(), static_cast<size_t>(sent) * segment_bytes), 0};
}

UdpSocket::Attempt UdpSocket::send_single(const NativeAddress& to, base::Bytes rest,
                                          size_t segment_bytes) {
  iovec piece = make_piece(rest.first(std::min(rest.size(), segment_bytes)));
  const msghdr header = make_header(to, &piece);
  if (calls_->sendmsg(fd(), &header, kSendFlags) < 0) return {0, errno};
  return {piece.iov_len, 0};
}

void UdpSocket::count_refusal(SendMode mode) {
  ++(mode == SendMode::kSegmented ? counters_.gso_refused : counters_.batch_refused);
}

SendResult UdpSocket::give_up(SendResult result, int error_number) {
  result.outcome = classify_send_error(error_number);
  result.error_number = error_number;
  if (result.outcome == SendOutcome::kWouldBlock) ++counters_.send_would_block;
  if (result.outcome == SendOutcome::kUnreachable) ++counters_.send_unreachable;
  if (result.outcome == SendOutcome::kMessageTooLong) ++counters_.send_too_long;
  return result;
}

base::Result<std::span<const ReceivedBurst>> UdpSocket::receive(ReceiveBuffers& buffers) {
  const std::span<mmsghdr> headers = buffers.prepare();
  ++counters_.receive_calls;
  const int received =
      calls_->recvmmsg(fd(), headers.data(), static_cast<unsigned>(headers.size()), MSG_DONTWAIT);
  if (received < 0) {
    if (!is_passing_receive_error(errno)) {
      return refusal("UDP socket " + local_.to_text() + " cannot be used any more: recvmmsg",
                     errno);
    }
    if (errno != EAGAIN && errno != EINTR) ++counters_.receive_errors;
    return std::span<const ReceivedBurst>();
  }
  const ReceiveOutcome outcome = buffers.decode(static_cast<size_t>(received));
  count_received(outcome);
  return outcome.bursts;
}

void UdpSocket::count_received(const ReceiveOutcome& outcome) {
  counters_.received_bursts += outcome.bursts.size();
  counters_.receive_truncated += outcome.truncated;
  counters_.receive_empty += outcome.empty;
  if (!outcome.has_drop_count) return;
  // The difference modulo 2^32 stays right when the kernel's counter wraps.
  counters_.kernel_drops += static_cast<uint32_t>(outcome.drop_count - last_drop_count_);
  last_drop_count_ = outcome.drop_count;
}

}  // namespace securefabric::net
