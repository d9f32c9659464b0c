// The three syscalls of the data path, as a seam: tests make them fail in ways that a loopback
// device never does (a NIC that refuses segmentation, a full queue, a firewall).
#pragma once

#include <sys/socket.h>

namespace securefabric::net {

// Each call behaves as the syscall of its name: -1 and errno on failure.
class SocketCalls {
 public:
  virtual ~SocketCalls() = default;
  virtual ssize_t sendmsg(int fd, const msghdr* message, int flags) const;
  virtual int sendmmsg(int fd, mmsghdr* messages, unsigned count, int flags) const;
  virtual int recvmmsg(int fd, mmsghdr* messages, unsigned count, int flags) const;
};

// The kernel itself; lives as long as the process.
const SocketCalls& system_socket_calls();

}  // namespace securefabric::net
