#include "sim/scenario.h"

#include <gtest/gtest.h>

#include "sim/fleet.h"
#include "sim/scenario_knobs.h"

namespace securefabric::sim {
namespace {

ScenarioOptions stormy_scenario(uint64_t seed) {
  ScenarioOptions options;
  options.cluster.ranks = 4;
  options.cluster.seed = seed;
  options.cluster.link = stormy_link();
  options.operations = 6;
  options.concurrent = 2;
  return options;
}

TEST(Scenario, run__same_seed_gives_the_same_history) {
  const ScenarioReport first = run_scenario(stormy_scenario(7));
  const ScenarioReport again = run_scenario(stormy_scenario(7));
  const ScenarioReport other = run_scenario(stormy_scenario(8));
  EXPECT_TRUE(first.ok() && again.ok() && other.ok());
  EXPECT_EQ(first.trace_hash, again.trace_hash);
  EXPECT_EQ(first.virtual_time, again.virtual_time);
  EXPECT_EQ(first.traffic.bytes_sealed, again.traffic.bytes_sealed);
  EXPECT_NE(first.trace_hash, other.trace_hash);
}

TEST(Scenario, run__thirty_two_ranks_in_one_thread) {
  ScenarioOptions options;
  options.cluster.ranks = 32;
  options.cluster.paths_per_peer = 2;
  options.operations = 9;
  options.count = 2'000;
  const ScenarioReport report = run_scenario(options);
  EXPECT_TRUE(report.ok()) << describe_failures(options, report);
}

TEST(Scenario, run__warm_up_is_not_measured) {
  ScenarioOptions options;
  options.kind = collective::OperationKind::kAllReduce;
  options.data_type = collective::DataType::kInt32;
  options.count = 100'000;
  options.operations = 2;
  options.has_warm_up = true;
  const ScenarioReport report = run_scenario(options);
  ASSERT_TRUE(report.ok()) << describe_failures(options, report);
  EXPECT_GT(report.began_at, base::Duration::millis(2));  // board, challenges
  EXPECT_LT(report.virtual_time, base::Duration::millis(3));
  EXPECT_EQ(report.payload_bytes, 2 * 2 * 400'000u);  // ranks x calls
  EXPECT_EQ(report.completions.size(), 4u);
  EXPECT_EQ(report.connections, 2u);
}

TEST(Scenario, run__jobs_are_apart_and_compete) {
  ScenarioOptions options;
  options.kind = collective::OperationKind::kAllReduce;
  options.cluster.ranks = 4;
  options.jobs = 2;
  options.data_type = collective::DataType::kInt32;
  options.reduce_op = collective::ReduceOp::kSum;
  options.count = 200'000;
  options.operations = 4;
  options.cluster.network = {.parallel_links = 1, .is_shared = true};
  options.cluster.link.rate_bits_per_second = 100'000'000;
  const ScenarioReport report = run_scenario(options);
  ASSERT_TRUE(report.ok()) << describe_failures(options, report);
  EXPECT_EQ(report.connections, 4u);  // no rank knows one of the other job
  EXPECT_EQ(report.by_link.size(), 2u);
  ASSERT_EQ(report.contended_bytes.size(), 2u);
  EXPECT_GT(std::min(report.contended_bytes[0], report.contended_bytes[1]), 0u);
}

TEST(Scenario, run__samples_links_and_paths) {
  ScenarioOptions options;
  options.kind = collective::OperationKind::kAllReduce;
  options.count = 1'000'000;
  options.cluster.link.rate_bits_per_second = 100'000'000;
  options.sample_every = base::Duration::millis(5);
  const ScenarioReport report = run_scenario(options);
  ASSERT_TRUE(report.ok()) << describe_failures(options, report);
  ASSERT_GT(report.samples.size(), 5u);
  EXPECT_EQ(report.samples[3].at, base::Duration::millis(15));
  const Sample& last = report.samples.back();
  EXPECT_EQ(last.paths.size(), 4u);
  EXPECT_GT(last.paths[0].srtt_us, 0);
  EXPECT_EQ(last.link_bytes.size(), 8u);
  EXPECT_GT(last.payload_bytes, report.samples[4].payload_bytes);
}

TEST(Scenario, run__healed_network_must_deliver_in_time) {
  ScenarioOptions options = stormy_scenario(3);
  options.cluster.link.loss = 1;
  options.heal_at = base::Duration::seconds(2);
  options.heal_limit = base::Duration::seconds(10);
  const ScenarioReport healed = run_scenario(options);
  EXPECT_TRUE(healed.ok()) << describe_failures(options, healed);
  EXPECT_GT(healed.virtual_time, base::Duration::seconds(2));
  options.heal_limit = base::Duration::nanos(1);
  EXPECT_FALSE(run_scenario(options).ok());
}

TEST(Scenario, run__that_cannot_finish_says_so) {
  ScenarioOptions options = stormy_scenario(1);
  options.cluster.link.loss = 1;
  options.time_limit = base::Duration::seconds(2);
  const ScenarioReport report = run_scenario(options);
  ASSERT_FALSE(report.ok());
  const std::string text = describe_failures(options, report);
  EXPECT_NE(text.find("seed 1 fails:"), std::string::npos) << text;
  EXPECT_NE(text.find("Timed out after"), std::string::npos) << text;
  EXPECT_NE(text.find("replay: python -m securefabric.simulate --op mixed --ranks 4"),
            std::string::npos);
}

TEST(Scenario, replay_command__has_every_option_that_is_not_usual) {
  ScenarioOptions options;
  options.kind = collective::OperationKind::kAllGather;
  options.data_type = collective::DataType::kInt16;
  options.cluster.link.loss = 0.125;
  options.cluster.link.rate_bits_per_second = 1'000'000'000;
  options.cluster.seed = 99;
  EXPECT_EQ(
      replay_command(options),
      "python -m securefabric.simulate --op all_gather --dtype int16 --ranks 2 --rate-mbit 1000 "
      "--loss 0.125 --seed 99");
  options.events = {parse_event("at_ms=5 link=1 down=1").value()};
  options.cluster.network.receiver_port.rate_bits_per_second = 500'000'000;
  EXPECT_EQ(
      replay_command(options),
      "python -m securefabric.simulate --op all_gather --dtype int16 --ranks 2 --rate-mbit 1000 "
      "--loss 0.125 --in-rate-mbit 500 --event 'at_ms=5 link=1 down=1' --seed 99");
}

TEST(Scenario, check_options__refuses_what_cannot_be_simulated) {
  EXPECT_TRUE(check_options(ScenarioOptions{}).ok());
  const auto refused = [](auto change) {
    ScenarioOptions options;
    change(options);
    return !check_options(options).ok();
  };
  EXPECT_TRUE(refused([](auto& o) { o.cluster.ranks = 0; }));
  EXPECT_TRUE(refused([](auto& o) { o.operations = 0; }));
  EXPECT_TRUE(refused([](auto& o) { o.cluster.paths_per_peer = 0; }));
  EXPECT_TRUE(refused([](auto& o) { o.cluster.generation_bits = 23; }));
  EXPECT_TRUE(refused([](auto& o) { o.cluster.datagram_bytes_max = 1'000; }));
  EXPECT_TRUE(refused([](auto& o) { o.cluster.link.loss = 1.5; }));
  EXPECT_TRUE(refused([](auto& o) { o.cluster.link.latency = base::Duration(); }));
  EXPECT_TRUE(refused([](auto& o) { o.skew = base::Duration::nanos(-1); }));
  EXPECT_TRUE(refused([](auto& o) { o.jobs = 4; }));
  EXPECT_TRUE(refused([](auto& o) { o.cluster.network.is_shared = true; }));
  EXPECT_TRUE(refused([](auto& o) { o.events = {parse_event("at_ms=1").value()}; }));
  EXPECT_TRUE(refused([](auto& o) {
    o.data_type = collective::DataType::kInt32;
    o.reduce_op = collective::ReduceOp::kAvg;
  }));
  EXPECT_TRUE(refused([](auto& o) {
    o.data_type = collective::DataType::kBfloat16;
    o.cluster.ranks = 100;
  }));
}

TEST(Scenario, parse__names_are_those_of_the_library) {
  EXPECT_EQ(parse_data_type("bfloat16"), collective::DataType::kBfloat16);
  EXPECT_EQ(parse_data_type("complex64"), std::nullopt);  // the oracle has no such type
  EXPECT_EQ(parse_reduce_op("AVG"), collective::ReduceOp::kAvg);
  EXPECT_EQ(parse_reduce_op("none"), std::nullopt);
}

}  // namespace
}  // namespace securefabric::sim
