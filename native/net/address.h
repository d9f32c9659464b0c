// Between base::SocketAddress and the kernel's sockaddr.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include "base/socket_address.h"

namespace securefabric::net {

inline constexpr size_t kIpv4Overhead = 28;  // IP and UDP headers
inline constexpr size_t kIpv6Overhead = 48;

// A sockaddr with room for both families, small enough to build on the stack for each send.
class NativeAddress {
 public:
  NativeAddress() = default;  // AF_UNSPEC, to be filled by the kernel
  explicit NativeAddress(const base::SocketAddress& address);  // kNone becomes AF_UNSPEC

  sockaddr* data() { return &address_.generic; }
  const sockaddr* data() const { return &address_.generic; }
  // The length of the family's sockaddr; 0 for AF_UNSPEC.
  socklen_t size() const;
  static constexpr socklen_t capacity() { return sizeof(Storage); }

 private:
  union Storage {
    sockaddr_in6 ipv6;  // first, so that value initialisation zeroes the largest member
    sockaddr_in ipv4;
    sockaddr generic;
  };
  Storage address_{};  // which member is valid: `generic.sa_family`
};

// kNone for a family other than AF_INET and AF_INET6.
base::SocketAddress from_native(const sockaddr* address);

}  // namespace securefabric::net
