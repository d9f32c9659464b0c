#include "net/interfaces.h"

#include <ifaddrs.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <map>
#include <memory>
#include <tuple>
#include <utility>

#include "net/address.h"
#include "net/file_descriptor.h"
#include "net/system_error.h"

namespace securefabric::net {
namespace {

// Any port does where nothing is sent; connect() to port 0 is refused by some kernels.
constexpr uint16_t kDiscardPort = 9;

// Names that container and virtual machine managers give to their bridges and cables.
constexpr std::array<std::string_view, 12> kContainerPrefixes = {
    "docker", "br-",    "virbr", "veth", "vnet",    "lxcbr",
    "lxdbr",  "podman", "cni",   "cali", "flannel", "cilium"};

uint32_t mtu_of(int any_socket, const char* name) {
  ifreq request{};
  std::strncpy(request.ifr_name, name, sizeof(request.ifr_name) - 1);
  if (::ioctl(any_socket, SIOCGIFMTU, &request) != 0) return 0;
  return static_cast<uint32_t>(request.ifr_mtu);
}

Interface describe(const ifaddrs& entry, int any_socket) {
  constexpr unsigned kUsable = IFF_UP | IFF_RUNNING;
  Interface interface;
  interface.name = entry.ifa_name;
  interface.address = from_native(entry.ifa_addr);
  interface.index = ::if_nametoindex(entry.ifa_name);
  interface.mtu = mtu_of(any_socket, entry.ifa_name);
  interface.is_loopback = (entry.ifa_flags & IFF_LOOPBACK) != 0;
  interface.is_up = (entry.ifa_flags & kUsable) == kUsable;
  return interface;
}

// SECUREFABRIC_SOCKET_IFNAME, parsed.
struct Choice {
  bool is_exclusion = false;            // leading '^': the names are what is not wanted
  bool is_exact = false;                // then '=': whole names instead of prefixes
  std::vector<std::string_view> names;  // not empty texts; empty list: the default choice

  bool names_interface(const std::string& name) const {
    return std::any_of(names.begin(), names.end(), [&](std::string_view wanted) {
      return is_exact ? name == wanted : std::string_view(name).starts_with(wanted);
    });
  }
};

bool cut_leading(std::string_view& text, char mark) {
  const bool is_there = text.starts_with(mark);
  if (is_there) text.remove_prefix(1);
  return is_there;
}

Choice parse_choice(std::string_view grammar) {
  Choice choice;
  choice.is_exclusion = cut_leading(grammar, '^');
  choice.is_exact = cut_leading(grammar, '=');
  while (!grammar.empty()) {
    const size_t comma = grammar.find(',');
    const std::string_view name = grammar.substr(0, comma);
    if (!name.empty()) choice.names.push_back(name);
    grammar = comma == std::string_view::npos ? std::string_view() : grammar.substr(comma + 1);
  }
  return choice;
}

bool is_container_name(const std::string& name) {
  return std::any_of(kContainerPrefixes.begin(), kContainerPrefixes.end(),
                     [&](std::string_view prefix) { return name.starts_with(prefix); });
}

bool is_link_local(const Interface& interface) {
  return interface.address.is_link_local();
}

template <typename Predicate>
std::vector<Interface> keep(const std::vector<Interface>& from, Predicate is_wanted) {
  std::vector<Interface> kept;
  std::copy_if(from.begin(), from.end(), std::back_inserter(kept), is_wanted);
  return kept;
}

// Drops the link-local addresses of interfaces that have another one.
std::vector<Interface> prefer_routable(const std::vector<Interface>& from) {
  return keep(from, [&](const Interface& candidate) {
    return !is_link_local(candidate) ||
           std::none_of(from.begin(), from.end(), [&](const Interface& other) {
             return other.index == candidate.index && !is_link_local(other);
           });
  });
}

std::vector<Interface> loopback_if_empty(std::vector<Interface> chosen,
                                         const std::vector<Interface>& candidates) {
  if (!chosen.empty()) return chosen;
  return keep(candidates, [](const Interface& candidate) { return candidate.is_loopback; });
}

std::vector<Interface> apply_choice(const Choice& choice, const std::vector<Interface>& usable) {
  if (!choice.is_exclusion && !choice.names.empty()) {
    return prefer_routable(keep(usable, [&](const Interface& candidate) {
      return choice.names_interface(candidate.name);
    }));
  }
  const bool is_default = choice.names.empty();
  const std::vector<Interface> allowed = keep(usable, [&](const Interface& candidate) {
    return is_default || !choice.names_interface(candidate.name);
  });
  std::vector<Interface> networks = keep(allowed, [&](const Interface& candidate) {
    const bool is_hidden = is_default && is_container_name(candidate.name);
    return !candidate.is_loopback && !is_link_local(candidate) && !is_hidden;
  });
  return loopback_if_empty(std::move(networks), allowed);
}

base::Error nothing_matches(std::string_view grammar, const std::vector<Interface>& all) {
  std::string message = "SECUREFABRIC_SOCKET_IFNAME=\"";
  message.append(grammar.substr(0, 80)).append("\" matches no usable interface; this host has");
  if (all.empty()) message += " none";
  for (const Interface& interface : all) {
    message += ' ' + interface.name + '=' + interface.address.ip_text();
    if (!interface.is_up) message += "(down)";
    if (message.size() > 1000) break;  // a host with hundreds of addresses
  }
  return {base::ErrorCode::kConfig, std::move(message)};
}

}  // namespace

base::Result<std::vector<Interface>> list_interfaces() {
  ifaddrs* head = nullptr;
  if (::getifaddrs(&head) != 0) return system_error("getifaddrs", errno);
  const std::unique_ptr<ifaddrs, decltype(&::freeifaddrs)> list(head, &::freeifaddrs);
  const auto any_socket =
      FileDescriptor::open([] { return ::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0); });
  std::vector<Interface> found;
  for (const ifaddrs* entry = head; entry != nullptr; entry = entry->ifa_next) {
    if (entry->ifa_addr == nullptr) continue;  // an interface without addresses
    Interface interface = describe(*entry, any_socket.value());
    if (interface.address.family() != base::AddressFamily::kNone) {
      found.push_back(std::move(interface));
    }
  }
  const auto key = [](const Interface& entry) {
    return std::tuple(entry.index, entry.address.family());
  };
  std::stable_sort(found.begin(), found.end(),
                   [&](const Interface& a, const Interface& b) { return key(a) < key(b); });
  return found;
}

base::Result<std::vector<Interface>> select_interfaces(const std::vector<Interface>& all,
                                                       std::string_view grammar) {
  const std::vector<Interface> usable =
      keep(all, [](const Interface& candidate) { return candidate.is_up; });
  std::vector<Interface> chosen = apply_choice(parse_choice(grammar), usable);
  if (chosen.empty()) return nothing_matches(grammar, all);
  return chosen;
}

base::Result<std::vector<Interface>> drop_narrow(const std::vector<Interface>& from,
                                                 size_t datagram_bytes) {
  std::string narrow;
  std::vector<Interface> wide = keep(from, [&](const Interface& candidate) {
    const bool is_ipv6 = candidate.address.is_ipv6();
    const size_t needed = datagram_bytes + (is_ipv6 ? kIpv6Overhead : kIpv4Overhead);
    if (candidate.mtu == 0 || candidate.mtu >= needed) return true;
    narrow += ' ' + candidate.name + '=' + candidate.address.ip_text() + " (MTU " +
              std::to_string(candidate.mtu) + ", " + std::to_string(needed) + " needed)";
    return false;
  });
  if (!wide.empty() || from.empty()) return wide;
  return base::Error{base::ErrorCode::kConfig,
                     "no network interface carries datagrams of " + std::to_string(datagram_bytes) +
                         " bytes, the least that securefabric sends:" + narrow.substr(0, 1000) +
                         "; raise its MTU, or choose others with SECUREFABRIC_SOCKET_IFNAME"};
}

std::vector<Interface> keep_first(std::vector<Interface> from, size_t count) {
  if (from.size() <= count) return from;
  // How many of the same interface and family come before each.
  std::map<std::pair<uint32_t, base::AddressFamily>, size_t> seen;
  std::vector<std::pair<size_t, size_t>> order;  // that number, index
  for (size_t i = 0; i < from.size(); ++i) {
    order.emplace_back(seen[{from[i].index, from[i].address.family()}]++, i);
  }
  std::sort(order.begin(), order.end());
  order.resize(count);
  std::vector<Interface> kept;
  std::sort(order.begin(), order.end(),
            [](const auto& a, const auto& b) { return a.second < b.second; });
  for (const auto& [turn, index] : order) kept.push_back(std::move(from[index]));
  return kept;
}

base::Result<base::SocketAddress> local_address_towards(const base::SocketAddress& remote) {
  const std::string action = "no route to " + remote.ip_text();
  NativeAddress address(remote.port() != 0 ? remote : remote.with_port(kDiscardPort));
  if (address.size() == 0) return base::Error{base::ErrorCode::kConfig, action};
  const auto fd = FileDescriptor::open([&] {
    return ::socket(address.data()->sa_family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  });
  if (!fd.is_open() || ::connect(fd.value(), address.data(), address.size()) != 0) {
    return system_error(action, errno, base::ErrorCode::kConfig);
  }
  socklen_t length = NativeAddress::capacity();
  if (::getsockname(fd.value(), address.data(), &length) != 0) {
    return system_error(action, errno);
  }
  return from_native(address.data()).with_port(0);
}

}  // namespace securefabric::net
