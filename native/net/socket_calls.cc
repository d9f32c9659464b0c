#include "net/socket_calls.h"

namespace securefabric::net {

ssize_t SocketCalls::sendmsg(int fd, const msghdr* message, int flags) const {
  return ::sendmsg(fd, message, flags);
}

int SocketCalls::sendmmsg(int fd, mmsghdr* messages, unsigned count, int flags) const {
  return ::sendmmsg(fd, messages, count, flags);
}

int SocketCalls::recvmmsg(int fd, mmsghdr* messages, unsigned count, int flags) const {
  return ::recvmmsg(fd, messages, count, flags, nullptr);
}

const SocketCalls& system_socket_calls() {
  static const SocketCalls calls;
  return calls;
}

}  // namespace securefabric::net
