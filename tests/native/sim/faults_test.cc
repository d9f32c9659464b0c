// Collectives over links that lose, reorder, duplicate, delay and damage datagrams: slower, never
// wrong. A failure prints the command that replays it.
#include <gtest/gtest.h>

#include "sim/fleet.h"
#include "sim/scenario.h"

namespace securefabric::sim {
namespace {

using base::Duration;
using collective::OperationKind;

TEST(Faults, loss_reorder_and_duplication_never_change_a_result__100_seeds) {
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    ScenarioOptions options;
    options.cluster.seed = seed;
    options.cluster.ranks = 2 + static_cast<uint32_t>(seed % 4);
    options.cluster.link = stormy_link();
    options.operations = 8;
    options.concurrent = 1 + static_cast<uint32_t>(seed % 3);
    options.count = seed % 10 == 0 ? 200'000 : 20'000;
    const ScenarioReport report = run_scenario(options);
    ASSERT_TRUE(report.ok()) << describe_failures(options, report);
    EXPECT_GT(report.links.lost, 0u);
  }
}

TEST(Faults, damaged_datagrams_are_dropped_and_counted) {
  ScenarioOptions options;
  options.cluster.ranks = 3;
  options.cluster.link.corrupt = 0.2;
  options.cluster.link.truncate = 0.1;
  options.count = 50'000;
  options.operations = 10;
  const ScenarioReport report = run_scenario(options);
  EXPECT_TRUE(report.ok()) << describe_failures(options, report);
  const transport::DropCounters& drops = report.drops;
  EXPECT_GT(drops.auth_failed, 50u);
  EXPECT_GT(drops.too_short + drops.bad_version, 0u);
  EXPECT_EQ(drops.malformed, 0u);  // nothing unverified was ever decoded
}

TEST(Faults, duplicated_datagrams_are_dropped_and_counted) {
  ScenarioOptions options;
  options.cluster.link.duplicate = 1;
  options.count = 50'000;
  options.operations = 10;
  const ScenarioReport report = run_scenario(options);
  EXPECT_TRUE(report.ok()) << describe_failures(options, report);
  // Some copies come after the last operation.
  EXPECT_GE(report.drops.replay_duplicate + 100, report.links.duplicated);
  EXPECT_EQ(report.traffic.duplicate_fragments, 0u);
}

TEST(Faults, keys_roll_every_64_packets_under_loss__20_seeds) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    ScenarioOptions options;
    options.cluster.seed = seed;
    options.cluster.ranks = 2 + static_cast<uint32_t>(seed % 3);
    options.cluster.generation_bits = 6;
    options.cluster.datagram_bytes_max = transport::kDatagramBytesMin;
    options.cluster.link = stormy_link();
    options.kind = OperationKind::kAllReduce;
    options.data_type = collective::DataType::kInt32;
    options.operations = 10;
    options.count = 50'000;
    const ScenarioReport report = run_scenario(options);
    ASSERT_TRUE(report.ok()) << describe_failures(options, report);
    EXPECT_EQ(report.drops.auth_failed, 0u);
    EXPECT_GT(report.traffic.packets_sealed, 64u * 4u * options.cluster.ranks);
  }
}

TEST(Faults, queue_that_overflows_is_only_slow) {
  ScenarioOptions options;
  options.kind = OperationKind::kAllToAll;
  options.cluster.ranks = 6;
  options.cluster.link.rate_bits_per_second = 50'000'000;
  options.cluster.link.queue_bytes_max = 15'000;  // not two packets
  options.count = 200'000;
  const ScenarioReport report = run_scenario(options);
  EXPECT_TRUE(report.ok()) << describe_failures(options, report);
  EXPECT_GT(report.links.queue_dropped, 0u);
}

TEST(Faults, queue_marks_are_counted_by_the_receiver) {
  ScenarioOptions options;
  options.cluster.link.rate_bits_per_second = 100'000'000;
  options.cluster.link.mark_above_bytes = 20'000;
  options.kind = OperationKind::kAllReduce;
  options.count = 100'000;
  const ScenarioReport report = run_scenario(options);
  EXPECT_TRUE(report.ok()) << describe_failures(options, report);
  EXPECT_GT(report.traffic.ce_received, 0u);
  EXPECT_EQ(report.traffic.ce_received, report.links.marked);
}

}  // namespace
}  // namespace securefabric::sim
