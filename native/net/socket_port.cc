#include "net/socket_port.h"

#include <algorithm>

#include "net/clock.h"

namespace securefabric::net {

using base::Error;
using base::ErrorCode;
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
  if (const auto finished = finish_unsent(); !finished || !finished.value()) return finished;
  transport::Transmit out;
  // Sending takes its time: each burst carries its own, or round trips would look longer.
  while (engine.poll_transmit(std::max(now, net::now()), out)) {
    any = true;
    const auto done = send(out.socket, out.to, out.segment_bytes, out.bytes);
    if (!done) return done.error();
    if (done.value() < out.bytes.size()) {
      unsent_.push_back({out.socket, out.to, out.segment_bytes,
                         base::to_vector(out.bytes.subspan(done.value()))});
      break;
    }
  }
  return any;
}

// True when nothing is left over.
Result<bool> SocketPort::finish_unsent() {
  if (unsent_.empty()) return true;
  Unsent& rest = unsent_.front();
  const auto done = send(rest.socket, rest.to, rest.segment_bytes, rest.bytes);
  if (!done) return done.error();
  if (done.value() < rest.bytes.size()) {
    rest.bytes.erase(rest.bytes.begin(), rest.bytes.begin() + static_cast<ptrdiff_t>(done.value()));
    return false;
  }
  unsent_.pop_front();
  return true;
}

Result<size_t> SocketPort::send(uint8_t socket, const base::SocketAddress& to, size_t segment_bytes,
                                base::Bytes bytes) {
  const SendResult result = sockets_[socket].send_burst(to, bytes, segment_bytes);
  switch (result.outcome) {
    case SendOutcome::kWouldBlock:
      return std::min(result.segments_taken * segment_bytes, bytes.size());
    // Like a loss on the network: the transport sends the data again, on another path if it can.
    case SendOutcome::kSent:
    case SendOutcome::kUnreachable:
    case SendOutcome::kMessageTooLong: return bytes.size();
    case SendOutcome::kFatal: break;
  }
  return Error{ErrorCode::kSystem, "UDP socket " + sockets_[socket].local_address().to_text() +
                                       " cannot be used any more (errno " +
                                       std::to_string(result.error_number) + ")"};
}

}  // namespace securefabric::net
