#include "net/interfaces.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "net/udp_socket.h"

namespace securefabric::net {
namespace {

Interface make_interface(std::string name, uint32_t index, std::string_view ip, bool is_up = true) {
  Interface interface;
  interface.name = std::move(name);
  interface.address = base::SocketAddress::parse_ip(ip).value();
  interface.index = index;
  interface.mtu = 1500;
  interface.is_loopback = interface.address.is_loopback();
  interface.is_up = is_up;
  return interface;
}

std::vector<Interface> typical_host() {
  return {
      make_interface("lo", 1, "127.0.0.1"),          make_interface("lo", 1, "::1"),
      make_interface("eth0", 2, "10.0.0.1"),         make_interface("eth0", 2, "fe80::1%2"),
      make_interface("eth1", 3, "10.0.1.1"),         make_interface("eth10", 4, "10.0.2.1"),
      make_interface("eth11", 5, "10.0.3.1", false), make_interface("ib0", 6, "fe80::9%6"),
      make_interface("docker0", 7, "172.17.0.1"),    make_interface("veth12ab", 8, "172.18.0.1"),
      make_interface("virbr0", 9, "192.168.122.1")};
}

// The addresses, space-separated.
std::string texts_of(const std::vector<Interface>& interfaces) {
  std::string text;
  for (const Interface& interface : interfaces) {
    if (!text.empty()) text += ' ';
    text += interface.address.ip_text();
  }
  return text;
}

// The chosen addresses, space-separated; the error's text when nothing was chosen.
std::string chosen(const std::vector<Interface>& all, std::string_view grammar) {
  const auto result = select_interfaces(all, grammar);
  if (!result.ok()) return "error";
  return texts_of(result.value());
}

TEST(Interfaces, drop_narrow__leaves_out_what_carries_too_little) {
  std::vector<Interface> all = {
      make_interface("eth0", 2, "10.0.0.1"), make_interface("tun0", 3, "10.0.1.1"),
      make_interface("tun0", 3, "fd00::1"), make_interface("odd0", 4, "10.0.2.1")};
  all[1].mtu = all[2].mtu = 1228;  // enough for IPv4 alone
  all[3].mtu = 0;                  // nobody knows
  EXPECT_EQ(texts_of(drop_narrow(all, 1200).value()), "10.0.0.1 10.0.1.1 10.0.2.1");
  all[1].mtu = 1227;
  EXPECT_EQ(texts_of(drop_narrow(all, 1200).value()), "10.0.0.1 10.0.2.1");
}

TEST(Interfaces, drop_narrow__names_the_interfaces_when_none_is_left) {
  std::vector<Interface> all = {make_interface("eth0", 2, "10.0.0.1")};
  all[0].mtu = 1000;
  const auto none = drop_narrow(all, 1200);
  ASSERT_FALSE(none.ok());
  EXPECT_EQ(none.error().code, base::ErrorCode::kConfig);
  EXPECT_NE(none.error().message.find("eth0=10.0.0.1 (MTU 1000, 1228 needed)"), std::string::npos)
      << none.error().message;
}

TEST(Interfaces, keep_first__takes_the_first_of_each_interface_and_family_first) {
  const std::vector<Interface> all = {
      make_interface("eth0", 2, "10.0.0.1"), make_interface("eth0", 2, "10.0.0.2"),
      make_interface("eth0", 2, "10.0.0.3"), make_interface("eth0", 2, "fd00::1"),
      make_interface("eth0", 2, "fd00::2"),  make_interface("eth1", 3, "10.1.0.1")};
  EXPECT_EQ(texts_of(keep_first(all, 6)), texts_of(all));
  EXPECT_EQ(texts_of(keep_first(all, 5)), "10.0.0.1 10.0.0.2 fd00::1 fd00::2 10.1.0.1");
  EXPECT_EQ(texts_of(keep_first(all, 3)), "10.0.0.1 fd00::1 10.1.0.1");
  EXPECT_EQ(texts_of(keep_first(all, 1)), "10.0.0.1");
}

struct GrammarCase {
  const char* grammar;   // SECUREFABRIC_SOCKET_IFNAME
  const char* expected;  // addresses chosen on the typical host
};

TEST(Interfaces, select_interfaces__follows_the_grammar) {
  const GrammarCase cases[] = {
      {"", "10.0.0.1 10.0.1.1 10.0.2.1"},
      {"eth", "10.0.0.1 10.0.1.1 10.0.2.1"},
      {"eth1", "10.0.1.1 10.0.2.1"},
      {"=eth1", "10.0.1.1"},
      {"=eth1,docker0", "10.0.1.1 172.17.0.1"},
      {"=eth", "error"},
      {"eth0,ib", "10.0.0.1 fe80::9%6"},
      {"eth0,eth0,eth", "10.0.0.1 10.0.1.1 10.0.2.1"},
      {"docker", "172.17.0.1"},
      {"lo", "127.0.0.1 ::1"},
      {"^docker,veth,virbr", "10.0.0.1 10.0.1.1 10.0.2.1"},
      {"^eth,virbr", "172.17.0.1 172.18.0.1"},
      {"^=eth1", "10.0.0.1 10.0.2.1 172.17.0.1 172.18.0.1 192.168.122.1"},
      {"^eth,docker,veth,virbr", "127.0.0.1 ::1"},
      {"^eth,docker,veth,virbr,lo", "error"},
      {"=eth11", "error"},
      {"wlan", "error"},
      {",,eth0,", "10.0.0.1"},
      {"^", "10.0.0.1 10.0.1.1 10.0.2.1"},
      {"=", "10.0.0.1 10.0.1.1 10.0.2.1"},
  };
  for (const GrammarCase& expectation : cases) {
    EXPECT_EQ(chosen(typical_host(), expectation.grammar), expectation.expected)
        << '"' << expectation.grammar << '"';
  }
}

TEST(Interfaces, select_interfaces__falls_back_to_loopback) {
  EXPECT_EQ(
      chosen({make_interface("lo", 1, "127.0.0.1"), make_interface("docker0", 2, "172.17.0.1"),
              make_interface("eth0", 3, "10.0.0.1", false)},
             ""),
      "127.0.0.1");
}

TEST(Interfaces, select_interfaces__error_names_what_there_was) {
  const auto result = select_interfaces(typical_host(), "wlan");
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().code, base::ErrorCode::kConfig);
  for (const char* part : {"\"wlan\"", "eth0=10.0.0.1", "eth11=10.0.3.1(down)"}) {
    EXPECT_NE(result.error().message.find(part), std::string::npos) << part;
  }
  EXPECT_FALSE(select_interfaces({}, "").ok());
}

TEST(Interfaces, select_interfaces__error_is_bounded) {
  std::vector<Interface> many;
  for (uint32_t i = 0; i < 1000; ++i) many.push_back(make_interface("eth0", 1, "10.0.0.1", false));
  EXPECT_LT(select_interfaces(many, std::string(5000, 'x')).error().message.size(), 1500u);
}

TEST(Interfaces, list_interfaces__knows_loopback) {
  const auto all = list_interfaces();
  ASSERT_TRUE(all.ok());
  const auto loopback = std::find_if(all.value().begin(), all.value().end(), [](const auto& entry) {
    return entry.address.ip_text() == "127.0.0.1";
  });
  ASSERT_NE(loopback, all.value().end());
  EXPECT_TRUE(loopback->is_loopback);
  EXPECT_TRUE(loopback->is_up);
  EXPECT_GT(loopback->mtu, 1500u);
  EXPECT_GT(loopback->index, 0u);
  EXPECT_EQ(loopback->address.port(), 0);
}

TEST(Interfaces, list_interfaces__what_the_default_chooses_can_be_bound) {
  const auto selected = select_interfaces(list_interfaces().value(), "");
  ASSERT_TRUE(selected.ok()) << selected.error().message;
  for (const Interface& interface : selected.value()) {
    EXPECT_TRUE(UdpSocket::bind(interface.address).ok()) << interface.name;
  }
}

TEST(Interfaces, local_address_towards__finds_the_side_that_faces_it) {
  for (const uint16_t port : {uint16_t{0}, uint16_t{29500}}) {
    const auto local = local_address_towards(base::SocketAddress::ipv4({127, 0, 0, 1}, port));
    ASSERT_TRUE(local.ok());
    EXPECT_EQ(local.value(), base::SocketAddress::ipv4({127, 0, 0, 1}, 0));
  }
}

TEST(Interfaces, local_address_towards__no_route_is_an_error_that_names_the_target) {
  const auto local = local_address_towards(base::SocketAddress::ipv4({255, 255, 255, 255}, 1));
  ASSERT_FALSE(local.ok());  // broadcast needs a permission that the socket does not ask for
  EXPECT_NE(local.error().message.find("255.255.255.255"), std::string::npos);
  EXPECT_FALSE(local_address_towards(base::SocketAddress()).ok());
}

}  // namespace
}  // namespace securefabric::net
