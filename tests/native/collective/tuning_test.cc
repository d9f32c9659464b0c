#include "collective/tuning.h"

#include <gtest/gtest.h>

#include "collective/plan.h"
#include "transport/limits.h"

namespace securefabric::collective {
namespace {

constexpr OperationKind kTunable[] = {OperationKind::kAllReduce, OperationKind::kBroadcast,
                                      OperationKind::kReduce, OperationKind::kAllGather,
                                      OperationKind::kReduceScatter};

TuningTable table_of(std::vector<TuningRow> rows) {
  return TuningTable::make(std::move(rows)).value();
}

TEST(TuningTable, options_for__are_the_defaults_where_nothing_was_measured) {
  const TuningTable table = table_of({{OperationKind::kReduce, 4, 1, 3}});
  const PlanOptions defaults;
  for (const TuningTable& one : {TuningTable(), table}) {
    const PlanOptions options = one.options_for(OperationKind::kAllReduce, 4);
    EXPECT_EQ(options.all_reduce_doubling_bytes, defaults.all_reduce_doubling_bytes);
    EXPECT_EQ(options.all_reduce_doubling_bytes_per_rank,
              defaults.all_reduce_doubling_bytes_per_rank);
    EXPECT_EQ(options.segments_per_chunk, defaults.segments_per_chunk);
  }
}

TEST(TuningTable, options_for__takes_the_row_of_the_next_smaller_group) {
  const TuningTable table = table_of({{OperationKind::kAllReduce, 16, 300, 3},
                                      {OperationKind::kAllReduce, 4, 100, 1},
                                      {OperationKind::kAllReduce, 8, 200, 2},
                                      {OperationKind::kAllGather, 5, 7, 9}});
  const std::pair<uint32_t, uint64_t> wanted[] = {{2, 100}, {4, 100},  {5, 100},  {7, 100},
                                                  {8, 200}, {15, 200}, {16, 300}, {999, 300}};
  for (const auto& [ranks, bytes] : wanted) {
    const PlanOptions options = table.options_for(OperationKind::kAllReduce, ranks);
    EXPECT_EQ(options.all_reduce_doubling_bytes, bytes) << ranks;
    EXPECT_EQ(options.all_reduce_doubling_bytes_per_rank, 0u);
    EXPECT_EQ(options.segments_per_chunk, bytes / 100);
  }
}

// Who one rank talks to, in the order of its steps: no two algorithms of a kind agree on it.
using Peers = std::vector<std::pair<StepKind, uint32_t>>;
Peers peers_of(OperationKind kind, uint32_t ranks, uint64_t bytes, const PlanOptions& options) {
  CollectiveRequest request;
  request.kind = kind;
  request.size = ranks;
  request.element_bytes = 4;
  const bool is_reduction = kind != OperationKind::kBroadcast && kind != OperationKind::kAllGather;
  if (is_reduction) request.reduce_op = ReduceOp::kSum;
  const Region whole{0, 0, bytes};
  request.inputs = {whole};
  request.outputs = {{1, 0, bytes}};
  if (kind == OperationKind::kBroadcast) request.outputs = {whole};
  if (kind == OperationKind::kAllGather) {
    request.outputs.clear();
    for (uint32_t i = 0; i < ranks; ++i) request.outputs.push_back({1, i * bytes, bytes});
  }
  if (kind == OperationKind::kReduceScatter) {
    request.inputs.clear();
    for (uint32_t i = 0; i < ranks; ++i) request.inputs.push_back({0, i * bytes, bytes});
  }
  request.rank = kind == OperationKind::kReduce ? ranks / 2 : 0;
  request.scratch_buffer = 2;
  const Schedule schedule = plan(request, options);
  Peers peers;
  for (const Step& step : schedule.steps) peers.emplace_back(step.kind, step.peer);
  return peers;
}

TEST(TuningTable, options_for__move_the_size_at_which_the_algorithm_changes) {
  constexpr uint32_t kRanks = 8;
  constexpr uint64_t kBytes = 32 << 10;  // of each part of all_gather and reduce_scatter
  for (const OperationKind kind : kTunable) {
    const uint64_t small = kind == OperationKind::kAllGather ? kBytes * kRanks : kBytes;
    const TuningTable below = table_of({{kind, kRanks, small - kRanks, 8}});
    const TuningTable at = table_of({{kind, kRanks, small, 8}});
    EXPECT_NE(peers_of(kind, kRanks, kBytes, below.options_for(kind, kRanks)),
              peers_of(kind, kRanks, kBytes, at.options_for(kind, kRanks)))
        << operation_kind_name(kind);
  }
}

TEST(TuningTable, make__refuses_by_name) {
  const auto refusal = [](std::vector<TuningRow> rows) {
    const auto made = TuningTable::make(std::move(rows));
    return made ? std::string() : made.error().message;
  };
  const auto kind = OperationKind::kAllReduce;
  EXPECT_EQ(refusal({}), "");
  EXPECT_NE(refusal({{OperationKind::kBarrier, 4, 1, 8}}).find("barrier for 4 ranks: it has one"),
            std::string::npos);
  EXPECT_NE(refusal({{kind, 1, 1, 8}}).find("number of ranks"), std::string::npos);
  EXPECT_NE(refusal({{kind, 2, 1, 0}}).find("segments_per_chunk"), std::string::npos);
  EXPECT_NE(refusal({{kind, 2, UINT64_MAX, 8}}).find("small_bytes"), std::string::npos);
  EXPECT_NE(refusal({{kind, 2, 1, 8}, {kind, 3, 1, 8}, {kind, 2, 5, 8}}).find("twice"),
            std::string::npos);
  const uint64_t eager = transport::kEagerMessageBytesMax;
  EXPECT_EQ(refusal({{OperationKind::kReduceScatter, 2, eager, 8}}), "");
  EXPECT_NE(refusal({{OperationKind::kReduceScatter, 2, eager + 1, 8}}), "");
}

}  // namespace
}  // namespace securefabric::collective
