#include "base/socket_address.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>

#include <string>
#include <unordered_set>

#include "base/random.h"

namespace securefabric::base {
namespace {

SocketAddress parsed(std::string_view text) {
  return SocketAddress::parse(text).value();
}

TEST(SocketAddress, default__is_no_address) {
  const SocketAddress none;
  EXPECT_EQ(none.family(), AddressFamily::kNone);
  EXPECT_TRUE(none.ip_bytes().empty());
  EXPECT_FALSE(none.is_loopback() || none.is_link_local() || none.is_unspecified());
  EXPECT_EQ(none.to_text(), "(no address)");
}

TEST(SocketAddress, parse__reads_ipv4) {
  const SocketAddress address = parsed("10.0.0.1:4000");
  EXPECT_EQ(address, SocketAddress::ipv4({10, 0, 0, 1}, 4000));
  EXPECT_EQ(to_vector(address.ip_bytes()), (std::vector<uint8_t>{10, 0, 0, 1}));
  EXPECT_EQ(address.port(), 4000);
}

TEST(SocketAddress, parse__reads_ipv6_with_scope) {
  const SocketAddress address = parsed("[fe80::1%2]:4000");
  EXPECT_EQ(address.scope_id(), 2u);
  EXPECT_EQ(address.port(), 4000);
  EXPECT_TRUE(address.is_link_local());
  EXPECT_EQ(address.ip_bytes()[0], 0xFE);
  EXPECT_EQ(address.ip_bytes()[15], 1);
}

TEST(SocketAddress, parse__refuses_what_is_not_an_address) {
  for (const char* text : {"",
                           ":",
                           "10.0.0.1",
                           "10.0.0.1:",
                           "10.0.0.1:65536",
                           "10.0.0.1:-1",
                           "10.0.0.1: 1",
                           "10.0.0:1",
                           "10.0.0.1.2:1",
                           "10.0.0.256:1",
                           "10.0.0.01:1",
                           "10..0.1:1",
                           "host:1",
                           "[10.0.0.1]:1",
                           "::1:4000",
                           "[::1]",
                           "[::1]4000",
                           "[::1:4000",
                           "[1::2::3]:1",
                           "[:::]:1",
                           "[1:2:3:4:5:6:7]:1",
                           "[1:2:3:4:5:6:7:8:9]:1",
                           "[1:2:3:4:5:6:7::8]:1x",
                           "[12345::]:1",
                           "[1::2:3:4:5:6:7:8]:1",
                           "[:1::]:1",
                           "[1:]:1",
                           "[g::]:1",
                           "[fe80::1%]:1",
                           "[fe80::1%eth0]:1",
                           "[1.2.3.4::]:1",
                           "[::1.2.3]:1",
                           "[]:1",
                           "10.0.0.1:1 "}) {
    const auto result = SocketAddress::parse(text);
    ASSERT_FALSE(result.ok()) << text;
    EXPECT_EQ(result.error().code, ErrorCode::kConfig) << text;
  }
}

TEST(SocketAddress, parse_ip__reads_an_address_without_port) {
  EXPECT_EQ(SocketAddress::parse_ip("10.0.0.1").value(), SocketAddress::ipv4({10, 0, 0, 1}, 0));
  EXPECT_EQ(SocketAddress::parse_ip("::1").value().to_text(), "[::1]:0");
  EXPECT_EQ(SocketAddress::parse_ip("fe80::1%7").value().scope_id(), 7u);
  EXPECT_FALSE(SocketAddress::parse_ip("[::1]").ok());
  EXPECT_FALSE(SocketAddress::parse_ip("10.0.0.1:1").ok());
}

TEST(SocketAddress, parse__quotes_a_bounded_part_of_a_long_text) {
  const auto result = SocketAddress::parse(std::string(100'000, 'x'));
  EXPECT_LT(result.error().message.size(), 200u);
}

TEST(SocketAddress, to_text__shortens_ipv6_as_rfc_5952_asks) {
  for (const char* text : {"[::]:0", "[::1]:1", "[1::]:1", "[2001:db8::1]:1", "[fe80::1%2]:4000",
                           "[2001:db8:0:1:1:1:1:1]:1", "[1:0:0:2::3]:1", "[0:1::]:1",
                           "[1:2:3:4:5:6:7:8]:1", "10.0.0.1:4000", "0.0.0.0:0"}) {
    EXPECT_EQ(parsed(text).to_text(), text);
  }
  EXPECT_EQ(parsed("[2001:DB8:0:0:0:0:0:1]:1").to_text(), "[2001:db8::1]:1");
  EXPECT_EQ(parsed("[1:0:0:2:0:0:3:4]:1").to_text(), "[1::2:0:0:3:4]:1");
  EXPECT_EQ(parsed("[::ffff:1.2.3.4]:1").to_text(), "[::ffff:102:304]:1");
}

// Half of the groups are zero, so that every shape of "::" appears.
SocketAddress::Ipv6Bytes random_ipv6(Random& random) {
  SocketAddress::Ipv6Bytes bytes{};
  for (size_t group = 0; group < 8; ++group) {
    if (random.next() % 2 == 0) continue;
    bytes[2 * group] = static_cast<uint8_t>(random.next() % 2 == 0 ? 0 : random.next());
    bytes[2 * group + 1] = static_cast<uint8_t>(random.next());
  }
  return bytes;
}

TEST(SocketAddress, ip_text__agrees_with_the_c_library) {
  Random random(1);
  for (int i = 0; i < 2000; ++i) {
    const SocketAddress::Ipv6Bytes bytes = random_ipv6(random);
    const std::string text = SocketAddress::ipv6(bytes, 0).ip_text();
    SocketAddress::Ipv6Bytes read{};
    ASSERT_EQ(inet_pton(AF_INET6, text.c_str(), read.data()), 1) << text;
    EXPECT_EQ(read, bytes) << text;
    char written[INET6_ADDRSTRLEN];
    ASSERT_NE(inet_ntop(AF_INET6, bytes.data(), written, sizeof(written)), nullptr);
    EXPECT_EQ(SocketAddress::parse_ip(written).value().ip_bytes().size(), 16u);
    EXPECT_EQ(SocketAddress::parse_ip(written).value(), SocketAddress::ipv6(bytes, 0)) << written;
  }
}

TEST(SocketAddress, parse_ip__accepts_exactly_what_inet_pton_accepts) {
  Random random(2);
  const std::string alphabet = "0123:::..af";
  for (int i = 0; i < 200'000; ++i) {
    std::string text;
    const size_t length = random.next() % 14;
    while (text.size() < length) text += alphabet[random.next() % alphabet.size()];
    uint8_t ignored[16];
    const bool is_address = inet_pton(AF_INET, text.c_str(), ignored) == 1 ||
                            inet_pton(AF_INET6, text.c_str(), ignored) == 1;
    ASSERT_EQ(SocketAddress::parse_ip(text).ok(), is_address) << text;
  }
}

TEST(SocketAddress, predicates__know_the_special_ranges) {
  EXPECT_TRUE(parsed("127.1.2.3:1").is_loopback());
  EXPECT_TRUE(parsed("[::1]:1").is_loopback());
  EXPECT_FALSE(parsed("[::2]:1").is_loopback());
  EXPECT_TRUE(parsed("169.254.0.1:1").is_link_local());
  EXPECT_TRUE(parsed("[febf::1]:1").is_link_local());
  EXPECT_FALSE(parsed("[fec0::1]:1").is_link_local());
  EXPECT_TRUE(parsed("0.0.0.0:1").is_unspecified());
  EXPECT_TRUE(parsed("[::]:1").is_unspecified());
  EXPECT_FALSE(parsed("0.0.0.1:1").is_unspecified());
}

TEST(SocketAddress, equality__covers_every_part) {
  const SocketAddress address = parsed("[fe80::1%2]:4000");
  EXPECT_EQ(address, parsed("[fe80:0::1%2]:4000"));
  EXPECT_NE(address, parsed("[fe80::2%2]:4000"));
  EXPECT_NE(address, parsed("[fe80::1%3]:4000"));
  EXPECT_NE(address, address.with_port(4001));
  EXPECT_NE(SocketAddress::ipv4({0, 0, 0, 0}, 1), SocketAddress::ipv6({}, 1));
}

TEST(SocketAddress, hash__differs_for_neighbours) {
  std::unordered_set<size_t> hashes;
  for (uint8_t host = 0; host < 100; ++host) {
    for (uint16_t port = 4000; port < 4064; ++port) {
      hashes.insert(SocketAddress::ipv4({10, 0, 0, host}, port).hash());
    }
  }
  EXPECT_EQ(hashes.size(), 6400u);
}

}  // namespace
}  // namespace securefabric::base
