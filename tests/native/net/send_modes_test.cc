#include "net/send_modes.h"

#include <gtest/gtest.h>

namespace securefabric::net {
namespace {

base::SocketAddress host(uint32_t number) {
  return base::SocketAddress::ipv4(
      {10, static_cast<uint8_t>(number >> 16), static_cast<uint8_t>(number >> 8),
       static_cast<uint8_t>(number)},
      4000);
}

TEST(SendModes, mode_for__unknown_destination_gets_the_best) {
  EXPECT_EQ(SendModes(SendMode::kSegmented).mode_for(host(1)), SendMode::kSegmented);
  EXPECT_EQ(SendModes(SendMode::kBatched).mode_for(host(1)), SendMode::kBatched);
}

TEST(SendModes, remember__holds_for_every_port_of_that_address_only) {
  SendModes modes(SendMode::kSegmented);
  modes.remember(host(1), SendMode::kBatched);
  EXPECT_EQ(modes.mode_for(host(1).with_port(1)), SendMode::kBatched);
  EXPECT_EQ(modes.mode_for(host(2)), SendMode::kSegmented);
  modes.remember(host(1), SendMode::kSingle);
  EXPECT_EQ(modes.mode_for(host(1)), SendMode::kSingle);
}

TEST(SendModes, remember__full_table_forgets_old_notes_and_keeps_the_newest) {
  SendModes modes(SendMode::kSegmented);
  for (uint32_t i = 0; i < 10'000; ++i) {
    modes.remember(host(i), SendMode::kBatched);
    ASSERT_EQ(modes.mode_for(host(i)), SendMode::kBatched);
  }
  size_t remembered = 0;
  for (uint32_t i = 0; i < 10'000; ++i) {
    if (modes.mode_for(host(i)) == SendMode::kBatched) ++remembered;
  }
  EXPECT_EQ(remembered, 256u);
}

}  // namespace
}  // namespace securefabric::net
