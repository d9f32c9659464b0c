#include "net/entropy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace securefabric::net {
namespace {

TEST(Entropy, fill_entropy__fills_all_of_a_long_buffer) {
  std::vector<uint8_t> bytes(1 << 20);
  ASSERT_TRUE(fill_entropy(bytes).ok());
  // A megabyte of fair bytes lacks a zero run of 16 with a probability of 1 - 2^-108.
  const std::vector<uint8_t> zeros(16);
  EXPECT_EQ(std::search(bytes.begin(), bytes.end(), zeros.begin(), zeros.end()), bytes.end());
}

TEST(Entropy, fill_entropy__differs_from_call_to_call) {
  std::vector<uint8_t> first(32);
  std::vector<uint8_t> second(32);
  ASSERT_TRUE(fill_entropy(first).ok());
  ASSERT_TRUE(fill_entropy(second).ok());
  EXPECT_NE(first, second);
}

TEST(Entropy, fill_entropy__accepts_nothing) {
  EXPECT_TRUE(fill_entropy({}).ok());
}

}  // namespace
}  // namespace securefabric::net
