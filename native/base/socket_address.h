// An IPv4 or IPv6 address with a port, as a plain value: no system header, no syscall, no name
// lookup.
//
// Text forms: "10.0.0.1:4000" and "[fe80::1%2]:4000", where the number after '%' is the interface's
// index (the scope of a link-local address, meaningful on this host only). `to_text` writes IPv6 as
// RFC 5952 asks, so equal addresses have equal texts.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "base/bytes.h"
#include "base/result.h"

namespace securefabric::base {

enum class AddressFamily : uint8_t { kNone, kIpv4, kIpv6 };

class SocketAddress {
 public:
  using Ipv4Bytes = std::array<uint8_t, 4>;
  using Ipv6Bytes = std::array<uint8_t, 16>;

  constexpr SocketAddress() = default;  // family kNone: no address at all
  static SocketAddress ipv4(const Ipv4Bytes& bytes, uint16_t port);
  static SocketAddress ipv6(const Ipv6Bytes& bytes, uint16_t port, uint32_t scope_id = 0);

  // With a port, as `to_text` writes it. Error: kConfig.
  static Result<SocketAddress> parse(std::string_view text);
  // Without port and brackets ("10.0.0.1", "fe80::1%2"); the port becomes 0. Error: kConfig.
  static Result<SocketAddress> parse_ip(std::string_view text);

  AddressFamily family() const { return family_; }
  bool is_ipv4() const { return family_ == AddressFamily::kIpv4; }
  bool is_ipv6() const { return family_ == AddressFamily::kIpv6; }
  uint16_t port() const { return port_; }
  uint32_t scope_id() const { return scope_id_; }
  Bytes ip_bytes() const;  // 4 or 16 bytes in network order; empty for kNone

  SocketAddress with_port(uint16_t port) const;
  bool is_unspecified() const;  // 0.0.0.0 or ::
  bool is_loopback() const;     // 127.0.0.0/8 or ::1
  bool is_link_local() const;   // 169.254.0.0/16 or fe80::/10

  std::string to_text() const;
  std::string ip_text() const;  // what `parse_ip` reads

  auto operator<=>(const SocketAddress&) const = default;
  size_t hash() const noexcept;

 private:
  std::array<uint8_t, 16> bytes_{};  // network order; IPv4 uses the first 4, rest zero
  uint32_t scope_id_ = 0;            // interface index; 0 for IPv4 and where none is named
  uint16_t port_ = 0;                // host order; 0 means any
  AddressFamily family_ = AddressFamily::kNone;  // which of the two the bytes are
};

}  // namespace securefabric::base

template <>
struct std::hash<securefabric::base::SocketAddress> {
  size_t operator()(const securefabric::base::SocketAddress& address) const noexcept {
    return address.hash();
  }
};
