#include "sim/call.h"

#include <gtest/gtest.h>

#include "sim/elements.h"

namespace securefabric::sim {
namespace {

using collective::DataType;
using collective::OperationKind;
using collective::ReduceOp;

std::shared_ptr<collective::Group> group_of(uint32_t size, uint32_t rank) {
  auto group = std::make_shared<collective::Group>();
  group->wire_id = 1;
  group->name = "test";
  group->rank = rank;
  for (uint32_t r = 0; r < size; ++r) group->ranks.push_back(base::Rank{r});
  return group;
}

Call sum_of(uint64_t count) {
  Call call;
  call.reduce_op = ReduceOp::kSum;
  call.data_type = DataType::kInt32;
  call.count = count;
  return call;
}

// The checker must be able to see what it looks for: alone, a rank's sum is its input.
TEST(CallRun, check__right_result_wrong_element_and_write_beside_it) {
  CallRun run(sum_of(100), 1);
  const auto operation = run.make_operation(group_of(1, 0), base::Instant::never());
  EXPECT_NE(run.check(0).value_or("right"), "right") << "nothing was computed yet";
  const base::MutableBytes output = operation->request().buffers.at(1);
  constexpr size_t kGuard = 64;
  std::copy(run.input(0).begin(), run.input(0).end(), output.begin() + kGuard);
  EXPECT_EQ(run.check(0).value_or("right"), "right");
  for (const size_t at : {kGuard + 17, kGuard - 1, kGuard + 400}) {
    output[at] ^= 1;
    EXPECT_NE(run.check(0).value_or("right"), "right") << at;
    output[at] ^= 1;
  }
  operation->request().buffers.at(0)[5] ^= 1;
  EXPECT_EQ(run.check(0), "the input was written to");
}

TEST(CallRun, make_operation__signature_is_equal_on_all_ranks) {
  for (const OperationKind kind :
       {OperationKind::kAllReduce, OperationKind::kBroadcast, OperationKind::kReduce,
        OperationKind::kAllGather, OperationKind::kReduceScatter, OperationKind::kAllToAll,
        OperationKind::kGather, OperationKind::kScatter, OperationKind::kBarrier}) {
    Call call = sum_of(10);
    call.kind = kind;
    if (!is_reduction(kind)) call.reduce_op = ReduceOp::kNone;
    call.is_uneven = true;
    call.root = has_root(kind) ? 2 : 0;
    CallRun run(call, 3);
    const auto first = run.make_operation(group_of(3, 0), base::Instant::never());
    for (uint32_t rank = 1; rank < 3; ++rank) {
      const auto other = run.make_operation(group_of(3, rank), base::Instant::never());
      EXPECT_EQ(first->signature(), other->signature()) << describe(call);
    }
  }
}

TEST(Elements, reduce_values__each_operator) {
  const int64_t values[] = {3, -2, 4};
  EXPECT_EQ(reduce_values(ReduceOp::kSum, values), 5);
  EXPECT_EQ(reduce_values(ReduceOp::kAvg, values), 5);
  EXPECT_EQ(reduce_values(ReduceOp::kPremulSum, values), 10);
  EXPECT_EQ(reduce_values(ReduceOp::kProduct, values), -24);
  EXPECT_EQ(reduce_values(ReduceOp::kMin, values), -2);
  EXPECT_EQ(reduce_values(ReduceOp::kMax, values), 4);
  EXPECT_EQ(reduce_values(ReduceOp::kBitAnd, values), 3 & -2 & 4);
  EXPECT_EQ(reduce_values(ReduceOp::kBitOr, values), -1);
  EXPECT_EQ(reduce_values(ReduceOp::kBitXor, values), 3 ^ -2 ^ 4);
}

TEST(Elements, write_element__every_type) {
  for (const DataType type : oracle_types()) {
    std::array<uint8_t, 8> bytes{};
    write_element(type, 1, 1, bytes.data());
    EXPECT_TRUE(std::any_of(bytes.begin(), bytes.end(), [](uint8_t b) { return b != 0; }));
  }
  float third = 0;
  write_element(DataType::kFloat32, 1, 3, reinterpret_cast<uint8_t*>(&third));
  EXPECT_EQ(third, 1.0F / 3.0F);
}

TEST(Elements, input_value__never_zero_and_small) {
  for (const DataType type : oracle_types()) {
    for (uint64_t i = 0; i < 1'000; ++i) {
      const int64_t value = input_value(type, 5, 2, i);
      EXPECT_NE(value, 0);
      EXPECT_LE(std::abs(value), 4);
      EXPECT_TRUE(value > 0 || type != DataType::kUint8);
    }
  }
}

}  // namespace
}  // namespace securefabric::sim
