#include "base/result.h"

#include <gtest/gtest.h>

#include <memory>
#include <set>

namespace securefabric::base {
namespace {

TEST(Result, ok__holds_the_value) {
  Result<int> result = 7;
  EXPECT_TRUE(result.ok());
  EXPECT_TRUE(result);
  EXPECT_EQ(result.value(), 7);
  result.value() = 8;
  EXPECT_EQ(std::as_const(result).value(), 8);
}

TEST(Result, error__holds_code_and_message) {
  const Result<int> result = Error{ErrorCode::kConfig, "no such key file"};
  EXPECT_FALSE(result);
  EXPECT_EQ(result.error(), (Error{ErrorCode::kConfig, "no such key file"}));
}

TEST(Result, value__moves_out_of_a_temporary) {
  Result<std::unique_ptr<int>> result = std::make_unique<int>(3);
  const std::unique_ptr<int> taken = std::move(result).value();
  EXPECT_EQ(*taken, 3);
}

TEST(ResultDeathTest, wrong_side__is_our_bug) {
  const Result<int> error = Error{ErrorCode::kSystem, "refused"};
  EXPECT_DEATH((void)error.value(), "refused");
  const Result<int> value = 1;
  EXPECT_DEATH((void)value.error(), "broken invariant");
}

TEST(Status, ok_status__is_ok) {
  EXPECT_TRUE(ok_status().ok());
}

TEST(ErrorCode, error_code_name__differs_for_each) {
  std::set<std::string> names;
  for (int code = 0; code <= static_cast<int>(ErrorCode::kSystem); ++code) {
    names.insert(error_code_name(static_cast<ErrorCode>(code)));
  }
  EXPECT_EQ(names.size(), static_cast<size_t>(ErrorCode::kSystem) + 1);
  EXPECT_FALSE(names.contains("unknown"));
}

}  // namespace
}  // namespace securefabric::base
