#include "transport/mtu_search.h"

#include <gtest/gtest.h>

#include "base/random.h"
#include "transport/limits.h"

namespace securefabric::transport {
namespace {

using base::Duration;
using base::Instant;

constexpr size_t kCeiling = kDatagramBytesMax;

Instant at(int64_t seconds) {
  return Instant::from_nanos(seconds * 1'000'000'000);
}

// Sends what is due over a path that carries `path_bytes`, until nothing is; returns the probes.
int run(MtuSearch& search, size_t path_bytes, Instant now = at(0)) {
  int probes = 0;
  while (const size_t bytes = search.probe_due(now)) {
    search.on_probe_sent();
    EXPECT_EQ(search.probe_due(now), 0u) << "one at a time";
    bytes <= path_bytes ? search.on_probe_acked(bytes, now) : search.on_probe_lost(bytes, now);
    ++probes;
    EXPECT_LT(probes, 100);
    if (probes >= 100) break;
  }
  return probes;
}

TEST(MtuSearch, probe_due__the_largest_first) {
  MtuSearch search(kCeiling);
  EXPECT_EQ(search.mtu(), kDatagramBytesMin);
  EXPECT_EQ(run(search, kCeiling), 1);
  EXPECT_EQ(search.mtu(), kCeiling);
  EXPECT_TRUE(search.deadline().is_never());
}

TEST(MtuSearch, probe_due__nothing_above_the_minimum_to_find) {
  MtuSearch search(kDatagramBytesMin);
  EXPECT_EQ(run(search, kCeiling), 0);
  search.restart();
  EXPECT_EQ(run(search, kCeiling), 0);
}

TEST(MtuSearch, probe_due__finds_every_size_to_within_a_step) {
  for (size_t path = kDatagramBytesMin; path <= kCeiling; path += 37) {
    MtuSearch search(kCeiling);
    EXPECT_LE(run(search, path), 33) << path;
    EXPECT_LE(search.mtu(), path);
    EXPECT_GT(search.mtu() + kMtuStep, path) << path;
  }
}

TEST(MtuSearch, probe_due__ethernet_is_found_exactly) {
  MtuSearch search(kCeiling);
  run(search, kMtuEthernet);
  EXPECT_EQ(search.mtu(), kMtuEthernet);
}

TEST(MtuSearch, on_probe_lost__a_few_losses_are_no_answer) {
  MtuSearch search(kCeiling);
  for (int i = 1; i < kMtuProbesMax; ++i) {
    search.on_probe_sent();
    search.on_probe_lost(kCeiling, at(0));
  }
  EXPECT_EQ(search.probe_due(at(0)), kCeiling);
  EXPECT_EQ(run(search, kCeiling), 1);
  EXPECT_EQ(search.mtu(), kCeiling);
}

TEST(MtuSearch, deadline__a_failed_search_is_repeated) {
  MtuSearch search(kCeiling);
  run(search, 4000);
  EXPECT_EQ(search.deadline(), at(0) + kMtuRaiseInterval);
  EXPECT_EQ(run(search, kCeiling, at(59)), 0);
  EXPECT_EQ(run(search, kCeiling, at(60)), 1);
  EXPECT_EQ(search.mtu(), kCeiling);
}

TEST(MtuSearch, on_probe_acked__late_answers_count) {
  MtuSearch search(kCeiling);
  for (int i = 0; i < kMtuProbesMax; ++i) {
    search.on_probe_sent();
    search.on_probe_lost(kCeiling, at(0));
  }
  search.on_probe_sent();  // of a smaller one
  search.on_probe_acked(kCeiling, at(0));
  EXPECT_EQ(search.mtu(), kCeiling);
  EXPECT_EQ(search.probe_due(at(0)), 0u);
}

TEST(MtuSearch, on_lost__a_route_that_shrank_is_noticed) {
  MtuSearch search(kCeiling);
  run(search, kCeiling);
  for (int i = 1; i < kMtuBlackHoleLosses; ++i) search.on_lost(kCeiling);
  search.on_acked(kCeiling);
  for (int i = 1; i < kMtuBlackHoleLosses; ++i) search.on_lost(kCeiling);
  search.on_lost(kDatagramBytesMin);
  search.on_acked(100);
  EXPECT_EQ(search.mtu(), kCeiling) << "small packets say nothing";
  search.on_lost(kCeiling);
  EXPECT_EQ(search.mtu(), kDatagramBytesMin);
  run(search, 3000);
  EXPECT_GT(search.mtu() + kMtuStep, 3000u);
}

TEST(MtuSearch, restart__begins_with_what_worked) {
  MtuSearch search(kCeiling);
  run(search, 3000);
  const size_t before = search.mtu();
  search.restart();
  EXPECT_EQ(search.mtu(), kDatagramBytesMin);
  EXPECT_EQ(search.probe_due(at(1)), before);
  run(search, 3000);
  EXPECT_EQ(search.mtu(), before);
}

TEST(MtuSearch, every_call__never_beyond_what_was_acknowledged) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    base::Random random(seed);
    const size_t ceiling = kDatagramBytesMin + random.below(kCeiling - kDatagramBytesMin + 1);
    MtuSearch search(ceiling);
    size_t acked = kDatagramBytesMin;
    for (int i = 0; i < 300; ++i) {
      const size_t due = search.probe_due(at(i));
      ASSERT_TRUE(due == 0 || (due > search.mtu() && due <= ceiling)) << due;
      if (due > 0) search.on_probe_sent();
      if (due > 0 && random.chance(0.5)) {
        search.on_probe_acked(due, at(i));
        acked = std::max(acked, due);
      } else if (due > 0) {
        search.on_probe_lost(due, at(i));
      }
      if (random.chance(0.2)) search.on_lost(ceiling);
      if (random.chance(0.02)) search.restart();
      ASSERT_LE(search.mtu(), acked);
      ASSERT_GE(search.mtu(), kDatagramBytesMin);
    }
  }
}

}  // namespace
}  // namespace securefabric::transport
