#include "net/socket_options.h"

#include <netinet/in.h>
#include <netinet/udp.h>
#include <sys/socket.h>

#include <algorithm>
#include <limits>

#include "base/ecn.h"

namespace securefabric::net {
namespace {

bool set_option(int fd, int level, int name, int value) {
  return ::setsockopt(fd, level, name, &value, sizeof(value)) == 0;
}

// 0 when the kernel does not know the option.
int read_option(int fd, int level, int name) {
  int value = 0;
  socklen_t length = sizeof(value);
  return ::getsockopt(fd, level, name, &value, &length) == 0 ? value : 0;
}

// The kernel doubles what is asked for, to pay for its own bookkeeping, and reports the double.
uint32_t ask_buffer(int fd, int forced_name, int plain_name, uint32_t bytes) {
  constexpr uint32_t kAskMax = std::numeric_limits<int>::max() / 2;
  const int asked = static_cast<int>(std::min(bytes, kAskMax));
  if (!set_option(fd, SOL_SOCKET, forced_name, asked)) {  // needs CAP_NET_ADMIN
    set_option(fd, SOL_SOCKET, plain_name, asked);        // cut to rmem_max or wmem_max
  }
  return static_cast<uint32_t>(read_option(fd, SOL_SOCKET, plain_name)) / 2;
}

bool set_ecn(int fd, bool is_ipv6) {
  const int ect0 = static_cast<int>(base::Ecn::kEct0);
  if (is_ipv6) {
    return set_option(fd, IPPROTO_IPV6, IPV6_TCLASS, ect0) &&
           set_option(fd, IPPROTO_IPV6, IPV6_RECVTCLASS, 1);
  }
  return set_option(fd, IPPROTO_IP, IP_TOS, ect0) && set_option(fd, IPPROTO_IP, IP_RECVTOS, 1);
}

bool set_mtu_probing(int fd, bool is_ipv6) {
  return is_ipv6 ? set_option(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_PROBE)
                 : set_option(fd, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE);
}

}  // namespace

SocketGrants apply_socket_options(int fd, base::AddressFamily family,
                                  const UdpSocketOptions& options) {
  const bool is_ipv6 = family == base::AddressFamily::kIpv6;
  SocketGrants grants;
  grants.receive_buffer_bytes =
      ask_buffer(fd, SO_RCVBUFFORCE, SO_RCVBUF, options.receive_buffer_bytes);
  grants.send_buffer_bytes = ask_buffer(fd, SO_SNDBUFFORCE, SO_SNDBUF, options.send_buffer_bytes);
  // Setting the socket-wide segment size to 0 changes nothing: it only asks for the option's name.
  grants.has_gso = options.use_gso && set_option(fd, SOL_UDP, UDP_SEGMENT, 0);
  grants.has_gro = options.use_gro && set_option(fd, SOL_UDP, UDP_GRO, 1);
  grants.has_ecn = set_ecn(fd, is_ipv6);
  grants.has_drop_count = set_option(fd, SOL_SOCKET, SO_RXQ_OVFL, 1);
  grants.has_timestamps = set_option(fd, SOL_SOCKET, SO_TIMESTAMPNS, 1);
  grants.has_mtu_probing = set_mtu_probing(fd, is_ipv6);
  // IPv4 peers use IPv4 sockets: no address is ever written in two ways.
  if (is_ipv6) set_option(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1);
  return grants;
}

}  // namespace securefabric::net
