#include "sim/wire_audit.h"

#include <gtest/gtest.h>

#include "wire/header.h"

namespace securefabric::sim {
namespace {

using base::Instant;
using base::Rank;

const Route kRoute{Rank{0}, Rank{1}, 1, 2};

std::vector<uint8_t> datagram(base::PacketNumber number, base::Spi spi = base::Spi{9}) {
  std::vector<uint8_t> bytes(100, 0xEE);
  wire::encode_header({base::PathId::from_sockets(1, 2), spi, number}, bytes);
  return bytes;
}

TEST(WireAudit, on_datagram__rising_numbers_are_fine_with_gaps) {
  WireAudit audit;
  for (const uint64_t number : {0, 1, 5, 100})
    audit.on_datagram(Instant(), kRoute, datagram(number));
  audit.on_datagram(Instant(), kRoute, datagram(0, base::Spi{10}));  // another sequence
  EXPECT_TRUE(audit.violations().empty());
}

TEST(WireAudit, on_datagram__a_number_sent_twice_is_a_violation) {
  WireAudit audit;
  audit.on_datagram(Instant(), kRoute, datagram(3));
  audit.on_datagram(Instant(), kRoute, datagram(3));
  ASSERT_EQ(audit.violations().size(), 1u);
  EXPECT_NE(audit.violations()[0].find("packet number 3"), std::string::npos);
}

TEST(WireAudit, on_datagram__a_path_id_of_another_route_is_a_violation) {
  WireAudit audit;
  audit.on_datagram(Instant(), {Rank{0}, Rank{1}, 0, 2}, datagram(3));
  EXPECT_EQ(audit.violations().size(), 1u);
}

TEST(WireAudit, on_datagram__plaintext_is_a_violation) {
  WireAudit audit;
  const std::vector<uint8_t> secret(40, 0x5A);
  audit.add_canary(secret);
  auto leaking = datagram(1);
  audit.on_datagram(Instant(), kRoute, leaking);
  EXPECT_TRUE(audit.violations().empty());
  std::fill_n(leaking.begin() + 50, 16, 0x5A);
  wire::encode_header({base::PathId::from_sockets(1, 2), base::Spi{9}, 2}, leaking);
  audit.on_datagram(Instant(), kRoute, leaking);
  ASSERT_EQ(audit.violations().size(), 1u);
  EXPECT_NE(audit.violations()[0].find("plaintext"), std::string::npos);
}

TEST(WireAudit, trace_hash__depends_on_time_route_and_bytes) {
  const auto hash_of = [](int64_t nanos, const Route& route, uint64_t number, uint8_t last) {
    WireAudit audit;
    auto bytes = datagram(number);
    bytes.back() = last;
    audit.on_datagram(Instant::from_nanos(nanos), route, bytes);
    return audit.trace_hash();
  };
  const uint64_t hash = hash_of(1, kRoute, 1, 1);
  EXPECT_EQ(hash, hash_of(1, kRoute, 1, 1));
  EXPECT_NE(hash, hash_of(2, kRoute, 1, 1));
  EXPECT_NE(hash, hash_of(1, {Rank{0}, Rank{2}, 1, 2}, 1, 1));
  EXPECT_NE(hash, hash_of(1, kRoute, 1, 2));
}

}  // namespace
}  // namespace securefabric::sim
