#include "collective/types.h"

#include <gtest/gtest.h>

namespace securefabric::collective {
namespace {

TEST(Types, names__of_what_is_no_enumerator_are_unknown) {
  EXPECT_STREQ("all_reduce", operation_kind_name(OperationKind::kAllReduce));
  EXPECT_STREQ("bfloat16", data_type_name(DataType::kBfloat16));
  EXPECT_STREQ("PREMUL_SUM", reduce_op_name(ReduceOp::kPremulSum));
  EXPECT_STREQ("unknown", operation_kind_name(OperationKind{0}));
  EXPECT_STREQ("unknown", data_type_name(DataType{99}));
  EXPECT_STREQ("unknown", reduce_op_name(ReduceOp{99}));
}

TEST(Types, parse_operation_kind__knows_the_collectives) {
  EXPECT_EQ(parse_operation_kind("reduce_scatter"), OperationKind::kReduceScatter);
  EXPECT_EQ(parse_operation_kind("barrier"), OperationKind::kBarrier);
  EXPECT_EQ(parse_operation_kind("send"), std::nullopt);
  EXPECT_EQ(parse_operation_kind("unknown"), std::nullopt);
}

TEST(Types, data_type_bytes__of_every_type) {
  size_t total = 0;
  for (int i = static_cast<int>(DataType::kByte); i <= static_cast<int>(DataType::kComplex128);
       ++i) {
    total += data_type_bytes(static_cast<DataType>(i));
  }
  EXPECT_EQ(4 * 1U + 4 * 2U + 3 * 4U + 4 * 8U + 16U, total);
}

TEST(TypesDeathTest, data_type_bytes__of_no_type) {
  EXPECT_DEATH((void)data_type_bytes(DataType{99}), "data type 99");
}

}  // namespace
}  // namespace securefabric::collective
