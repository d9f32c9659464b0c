#include "net/address.h"

#include <algorithm>
#include <cstring>

namespace securefabric::net {

NativeAddress::NativeAddress(const base::SocketAddress& address) {
  const base::Bytes ip = address.ip_bytes();
  if (address.is_ipv4()) {
    address_.ipv4 = sockaddr_in{};
    address_.ipv4.sin_family = AF_INET;
    address_.ipv4.sin_port = htons(address.port());
    std::memcpy(&address_.ipv4.sin_addr, ip.data(), ip.size());
  } else if (address.is_ipv6()) {
    address_.ipv6.sin6_family = AF_INET6;
    address_.ipv6.sin6_port = htons(address.port());
    address_.ipv6.sin6_scope_id = address.scope_id();
    std::memcpy(&address_.ipv6.sin6_addr, ip.data(), ip.size());
  }
}

socklen_t NativeAddress::size() const {
  switch (address_.generic.sa_family) {
    case AF_INET: return sizeof(sockaddr_in);
    case AF_INET6: return sizeof(sockaddr_in6);
    default: return 0;
  }
}

base::SocketAddress from_native(const sockaddr* address) {
  if (address->sa_family == AF_INET) {
    sockaddr_in ipv4{};
    std::memcpy(&ipv4, address, sizeof(ipv4));
    base::SocketAddress::Ipv4Bytes bytes{};
    std::memcpy(bytes.data(), &ipv4.sin_addr, bytes.size());
    return base::SocketAddress::ipv4(bytes, ntohs(ipv4.sin_port));
  }
  if (address->sa_family == AF_INET6) {
    sockaddr_in6 ipv6{};
    std::memcpy(&ipv6, address, sizeof(ipv6));
    base::SocketAddress::Ipv6Bytes bytes{};
    std::memcpy(bytes.data(), &ipv6.sin6_addr, bytes.size());
    return base::SocketAddress::ipv6(bytes, ntohs(ipv6.sin6_port), ipv6.sin6_scope_id);
  }
  return {};
}

}  // namespace securefabric::net
