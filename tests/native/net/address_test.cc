#include "net/address.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>

namespace securefabric::net {
namespace {

base::SocketAddress round_trip(std::string_view text) {
  const NativeAddress native(base::SocketAddress::parse(text).value());
  return from_native(native.data());
}

TEST(NativeAddress, from_native__gives_back_what_went_in) {
  for (const char* text : {"10.1.2.3:4000", "0.0.0.0:0", "255.255.255.255:65535", "[2001:db8::1]:1",
                           "[fe80::1%9]:2"}) {
    EXPECT_EQ(round_trip(text).to_text(), text);
  }
}

TEST(NativeAddress, data__has_the_kernels_layout) {
  const NativeAddress native(base::SocketAddress::ipv4({10, 1, 2, 3}, 4000));
  ASSERT_EQ(native.size(), sizeof(sockaddr_in));
  const auto* ipv4 = reinterpret_cast<const sockaddr_in*>(native.data());
  EXPECT_EQ(ipv4->sin_family, AF_INET);
  EXPECT_EQ(ntohs(ipv4->sin_port), 4000);
  EXPECT_EQ(ntohl(ipv4->sin_addr.s_addr), 0x0A010203u);
}

TEST(NativeAddress, size__is_zero_without_a_family) {
  EXPECT_EQ(NativeAddress().size(), 0u);
  EXPECT_EQ(NativeAddress(base::SocketAddress()).size(), 0u);
  EXPECT_EQ(from_native(NativeAddress().data()), base::SocketAddress());
}

}  // namespace
}  // namespace securefabric::net
