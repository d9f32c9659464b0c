// Moves datagrams between an engine and its UDP sockets: one turn in, one turn out. No threads.
//
// in:   recvmmsg (bursts joined by GRO) ─► split into datagrams ─► Engine::handle_datagram
// out:  Engine::poll_transmit (one GSO burst) ─► sendmsg; a burst that the socket does not take
//       whole is kept and finished first, so that no sealed packet is dropped on this host.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "base/time.h"
#include "collective/engine.h"
#include "net/receive_buffers.h"
#include "net/udp_socket.h"

namespace securefabric::net {

class SocketPort {
 public:
  explicit SocketPort(std::vector<UdpSocket> sockets);

  // Hands in what has arrived, at most one batch per socket. True when anything had. The socket
  // that brought something last is looked at each time, the others every kLookRoundInterval:
  // whoever spins asks that often, and a peer's small messages keep to one path.
  base::Result<bool> receive(collective::Engine& engine, base::Instant now);
  // Sends all that the engine has. True when anything was sent.
  base::Result<bool> transmit(collective::Engine& engine, base::Instant now);

  // Whose send buffer is full, if one's is: wait until it can be written, then transmit again.
  std::optional<uint8_t> blocked_socket() const {
    return unsent_.empty() ? std::nullopt : std::optional(unsent_.front().burst.socket);
  }
  const std::vector<UdpSocket>& sockets() const { return sockets_; }

 private:
  // A few times what it takes to ask one socket in vain.
  static constexpr base::Duration kLookRoundInterval = base::Duration::micros(4);

  // The rest of a burst.
  struct Unsent {
    transport::Transmit burst;  // but for its bytes, which are here
    std::vector<uint8_t> bytes;
  };

  base::Result<bool> receive_from(size_t socket, collective::Engine& engine, base::Instant now);
  base::Result<bool> finish_unsent(collective::Engine& engine);
  // Returns how many bytes are done with: sent, or lost on the way like on any network.
  base::Result<size_t> send(collective::Engine& engine, const transport::Transmit& burst);

  std::vector<UdpSocket> sockets_;  // indexed as in path ids
  ReceiveBuffers buffers_;          // shared by all sockets: stays in cache
  std::deque<Unsent> unsent_;       // at most one: transmit stops at the first
  size_t latest_ = 0;               // socket that brought something last
  base::Instant looked_round_at_ = base::Instant::from_nanos(-kLookRoundInterval.nanos());
};

}  // namespace securefabric::net
