// Every collective on every world size over a perfect network: results exact, checkers silent.
#include <gtest/gtest.h>

#include "sim/elements.h"
#include "sim/scenario.h"

namespace securefabric::sim {
namespace {

using collective::DataType;
using collective::OperationKind;

constexpr uint32_t kWorldSizes[] = {1, 2, 3, 4, 5, 8};

class LosslessCollectives : public testing::TestWithParam<OperationKind> {};

TEST_P(LosslessCollectives, are_exact_without_faults__any_world_size) {
  uint64_t seed = 1;
  for (const uint32_t ranks : kWorldSizes) {
    for (const uint64_t count : {0, 1, 1'000, 100'000}) {
      ScenarioOptions options;
      options.kind = GetParam();
      options.count = count;
      options.operations = 2;
      options.cluster.ranks = ranks;
      options.cluster.seed = ++seed;
      const ScenarioReport report = run_scenario(options);
      EXPECT_TRUE(report.ok()) << describe_failures(options, report);
      EXPECT_EQ(report.traffic.packets_lost, 0u) << describe(Call{.kind = GetParam()}) << ranks;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(AllKinds, LosslessCollectives,
                         testing::Values(OperationKind::kAllReduce, OperationKind::kBroadcast,
                                         OperationKind::kReduce, OperationKind::kAllGather,
                                         OperationKind::kReduceScatter, OperationKind::kAllToAll,
                                         OperationKind::kGather, OperationKind::kScatter,
                                         OperationKind::kBarrier),
                         [](const auto& kind) {
                           return collective::operation_kind_name(kind.param);
                         });

TEST(Collectives, all_reduce_is_exact__any_type_and_operator) {
  uint64_t seed = 100;
  for (const DataType type : oracle_types()) {
    for (uint8_t op = static_cast<uint8_t>(collective::ReduceOp::kSum);
         op <= static_cast<uint8_t>(collective::ReduceOp::kPremulSum); ++op) {
      if (!is_defined(static_cast<collective::ReduceOp>(op), type)) continue;
      ScenarioOptions options;
      options.kind = OperationKind::kAllReduce;
      options.data_type = type;
      options.reduce_op = static_cast<collective::ReduceOp>(op);
      options.count = 40'000;
      options.cluster.ranks = 3;
      options.cluster.seed = ++seed;
      const ScenarioReport report = run_scenario(options);
      EXPECT_TRUE(report.ok()) << describe_failures(options, report);
    }
  }
}

}  // namespace
}  // namespace securefabric::sim
