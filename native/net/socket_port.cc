#include "net/socket_port.h"

#include <algorithm>
#include <cerrno>

#include "net/address.h"
#include "net/clock.h"
#include "net/system_error.h"

namespace securefabric::net {

using base::Instant;
using base::Result;

namespace {

// A stamp that is older than this, or of the future, is of a wall clock that was set.
constexpr base::Duration kWaitMax = base::Duration::seconds(1);

// How long a burst lay in this host.
base::Duration waited(const ReceivedBurst& burst, Instant now, base::Duration since_realtime) {
  if (burst.stamped_ns == 0) return base::Duration();
  const base::Duration age = now - (Instant::from_nanos(burst.stamped_ns) + since_realtime);
  return age > base::Duration() && age < kWaitMax ? age : base::Duration();
}

std::string describe_send_error(const base::SocketAddress& from, const base::SocketAddress& to,
                                size_t datagram_bytes, int error_number) {
  std::string text =
      system_error("from " + from.to_text() + " to " + to.to_text(), error_number).message;
  const size_t packet_bytes = datagram_bytes + (to.is_ipv6() ? kIpv6Overhead : kIpv4Overhead);
  if (error_number == EMSGSIZE) {
    text += " (the interface takes no IP packet of " + std::to_string(packet_bytes) +
            " bytes: raise its MTU, or choose others with SECUREFABRIC_SOCKET_IFNAME)";
  } else if (error_number == EPERM || error_number == EACCES) {
    text += " (a firewall rule or a sandbox of this host: allow UDP to leave it)";
  } else if (error_number == EINVAL && from.is_loopback() && !to.is_loopback()) {
    text +=
        " (a loopback address reaches its own host only: set MASTER_ADDR to an address of "
        "rank 0 that all hosts reach, on every rank)";
  } else if (error_number == ENETUNREACH || error_number == EHOSTUNREACH) {
    text += " (no route: choose the network with SECUREFABRIC_SOCKET_IFNAME)";
  }
  return text;
}

}  // namespace

SocketPort::SocketPort(std::vector<UdpSocket> sockets) : sockets_(std::move(sockets)) {
  SF_CHECK(!sockets_.empty() && sockets_.size() <= transport::kSocketsMax);
}

Result<bool> SocketPort::receive(collective::Engine& engine, Instant now) {
  const size_t first = latest_;
  Result<bool> any = receive_from(first, engine, now);
  if (!any || now - looked_round_at_ < kLookRoundInterval) return any;
  looked_round_at_ = now;
  for (size_t i = 0; i < sockets_.size(); ++i) {
    if (i == first) continue;
    const auto more = receive_from(i, engine, now);
    if (!more) return more;
    any = any.value() || more.value();
  }
  return any;
}

Result<bool> SocketPort::receive_from(size_t socket, collective::Engine& engine, Instant now) {
  const auto bursts = sockets_[socket].receive(buffers_);
  if (!bursts) return bursts.error();
  if (bursts.value().empty()) return false;
  latest_ = socket;
  const base::Duration offset = since_realtime();
  for (const ReceivedBurst& burst : bursts.value()) {
    const bool is_marked_ce = burst.ecn == base::Ecn::kCe;
    const base::Duration age = waited(burst, now, offset);
    for (size_t at = 0; at < burst.bytes.size(); at += burst.segment_bytes) {
      const size_t length = std::min(burst.segment_bytes, burst.bytes.size() - at);
      engine.handle_datagram(now, static_cast<uint8_t>(socket), is_marked_ce,
                             burst.bytes.subspan(at, length), age);
    }
  }
  return true;
}

Result<bool> SocketPort::transmit(collective::Engine& engine, Instant now) {
  bool any = !unsent_.empty();
  if (const auto finished = finish_unsent(engine); !finished || !finished.value()) return finished;
  transport::Transmit out;
  // Sending takes its time: each burst carries its own, or round trips would look longer.
  while (engine.poll_transmit(std::max(now, net::now()), out)) {
    any = true;
    const auto done = send(engine, out);
    if (!done) return done.error();
    if (done.value() < out.bytes.size()) {
      unsent_.push_back({out, base::to_vector(out.bytes.subspan(done.value()))});
      break;
    }
  }
  return any;
}

// True when nothing is left over.
Result<bool> SocketPort::finish_unsent(collective::Engine& engine) {
  if (unsent_.empty()) return true;
  Unsent& rest = unsent_.front();
  rest.burst.bytes = rest.bytes;
  const auto done = send(engine, rest.burst);
  if (!done) return done.error();
  if (done.value() < rest.bytes.size()) {
    rest.bytes.erase(rest.bytes.begin(), rest.bytes.begin() + static_cast<ptrdiff_t>(done.value()));
    return false;
  }
  unsent_.pop_front();
  return true;
}

Result<size_t> SocketPort::send(collective::Engine& engine, const transport::Transmit& burst) {
  UdpSocket& socket = sockets_[burst.socket];
  const SendResult result = socket.send_burst(burst.to, burst.bytes, burst.segment_bytes);
  switch (result.outcome) {
    case SendOutcome::kWouldBlock:
      return std::min(result.segments_taken * burst.segment_bytes, burst.bytes.size());
    case SendOutcome::kSent: return burst.bytes.size();
    // Like a loss on the network: the transport sends the data again, on another path if it can.
    case SendOutcome::kUnreachable:
    case SendOutcome::kMessageTooLong:
      engine.endpoint().note_send_error(
          burst.peer, burst.path,
          describe_send_error(socket.local_address(), burst.to, burst.segment_bytes,
                              result.error_number));
      return burst.bytes.size();
    case SendOutcome::kFatal: break;
  }
  return refusal(
      "UDP socket " + socket.local_address().to_text() + " cannot be used any more: sendmsg",
      result.error_number);
}

}  // namespace securefabric::net
