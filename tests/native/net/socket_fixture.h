// Helpers shared by the socket tests: everything stays on loopback, every wait has a deadline.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/random.h"
#include "net/clock.h"
#include "net/poller.h"
#include "net/udp_socket.h"

namespace securefabric::net {

// Long enough for the slowest sanitizer build on a busy machine; reached only by a failing test.
inline constexpr base::Duration kPatience = base::Duration::seconds(20);

inline base::SocketAddress any_port(std::string_view ip) {
  return base::SocketAddress::parse_ip(ip).value();
}

inline UdpSocket bind_or_die(const UdpSocketOptions& options = {},
                             std::string_view ip = "127.0.0.1") {
  return UdpSocket::bind(any_port(ip), options).value();
}

inline std::vector<uint8_t> random_bytes(size_t size, uint64_t seed) {
  std::vector<uint8_t> bytes(size);
  base::Random(seed).fill(bytes);
  return bytes;
}

// A ReceivedBurst that owns its bytes.
struct KeptBurst {
  std::vector<uint8_t> bytes;  // a copy
  size_t segment_bytes = 0;    // as received
  base::SocketAddress from;    // as received
  base::Ecn ecn{};             // as received
};

// Reads until `bytes_wanted` have arrived, or the patience is over.
inline std::vector<KeptBurst> receive_bytes(UdpSocket& socket, size_t bytes_wanted) {
  Poller poller = Poller::make().value();
  EXPECT_TRUE(poller.add(socket.fd(), 1).ok());
  ReceiveBuffers buffers;
  std::vector<KeptBurst> kept;
  size_t bytes_received = 0;
  const base::Instant deadline = now() + kPatience;
  while (bytes_received < bytes_wanted && now() < deadline) {
    EXPECT_TRUE(poller.wait(deadline - now()).ok());
    const auto bursts = socket.receive(buffers);
    EXPECT_TRUE(bursts.ok());
    for (const ReceivedBurst& burst : bursts.value()) {
      kept.push_back({base::to_vector(burst.bytes), burst.segment_bytes, burst.from, burst.ecn});
      bytes_received += burst.bytes.size();
    }
  }
  EXPECT_EQ(bytes_received, bytes_wanted);
  return kept;
}

inline std::vector<uint8_t> joined(const std::vector<KeptBurst>& bursts) {
  std::vector<uint8_t> all;
  for (const KeptBurst& burst : bursts) {
    all.insert(all.end(), burst.bytes.begin(), burst.bytes.end());
  }
  return all;
}

}  // namespace securefabric::net
