// Which local addresses a rank may bind its sockets to.
//
//   list_interfaces() (syscalls) -> select_interfaces(), drop_narrow(), keep_first() (pure) -> bind
//   local_address_towards(rendezvous host) -> the address to prefer among them
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/socket_address.h"

namespace securefabric::net {

// One address of one network interface; an interface with several addresses appears several times.
struct Interface {
  std::string name;             // as the kernel knows it, such as "eth0"
  base::SocketAddress address;  // port 0; carries the scope id where the address needs one
  uint32_t index = 0;           // the kernel's number of the interface, from 1
  uint32_t mtu = 0;             // bytes of an IP packet; 0 when the kernel would not tell
  bool is_loopback = false;     // reaches this host only
  bool is_up = false;           // administratively up and with a carrier
};

// Every IPv4 and IPv6 address of this host (of its network namespace), by interface index, IPv4
// first. Error: kSystem.
base::Result<std::vector<Interface>> list_interfaces();

// Chooses among `all` by NCCL's grammar for SECUREFABRIC_SOCKET_IFNAME, keeping the order of `all`:
//
//   ""            interfaces that look like a network: not loopback, not a container bridge;
//                 loopback if there is none
//   "eth,ib"      names that start with eth or ib
//   "=eth0,eth1"  exactly these names
//   "^docker,lo"  names that start with neither; loopback only if nothing else is left
//   "^=eth3"      every name but this one
//
// Interfaces that are down are never chosen. A link-local address is chosen only for an interface
// that was named and has no other. Error: kConfig, naming what there was to choose from.
base::Result<std::vector<Interface>> select_interfaces(const std::vector<Interface>& all,
                                                       std::string_view grammar);

// Drops interfaces that cannot carry datagrams of so many bytes, and keeps those whose MTU nobody
// knows. Error: kConfig, naming them, when none is left.
base::Result<std::vector<Interface>> drop_narrow(const std::vector<Interface>& from,
                                                 size_t datagram_bytes);

// At most `count` of them, in their order: the first address that each interface has of each
// family, then the second of each, and so on.
std::vector<Interface> keep_first(std::vector<Interface> from, size_t count);

// The local address (port 0) from which this host would send to `remote`: asks the routing table,
// sends nothing. Error: kConfig when no route leads there.
base::Result<base::SocketAddress> local_address_towards(const base::SocketAddress& remote);

}  // namespace securefabric::net
