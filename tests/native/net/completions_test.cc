#include "net/completions.h"

#include <gtest/gtest.h>

#include <future>
#include <set>

#include "net/job_fixture.h"

namespace securefabric::net {
namespace {

using base::Duration;

class CompletionsTest : public ::testing::Test {
 protected:
  CompletionsTest() { group_->ranks = {base::Rank{0}}; }

  std::shared_ptr<Operation> operation_with(std::function<void()> on_done) {
    auto operation = make_call(group_)->operation;
    operation->on_done = std::move(on_done);
    return operation;
  }

  std::shared_ptr<Group> group_ = std::make_shared<Group>();
};

TEST_F(CompletionsTest, push__in_order_and_one_after_the_other) {
  Completions completions(Duration::forever());
  std::atomic<int> running{0};
  std::vector<int> order;
  for (int i = 0; i < 500; ++i) {
    completions.push(operation_with([&, i] {
      EXPECT_EQ(++running, 1);
      order.push_back(i);
      --running;
    }));
  }
  completions.end();
  ASSERT_EQ(order.size(), 500u);
  EXPECT_TRUE(std::is_sorted(order.begin(), order.end()));
}

TEST_F(CompletionsTest, push__calls_once_and_not_what_somebody_else_has_called) {
  Completions completions;
  int calls = 0;
  const auto operation = operation_with([&] { ++calls; });
  call_back(*operation);
  completions.push(operation);
  completions.push(operation_with(nullptr));
  completions.end();
  EXPECT_EQ(calls, 1);
}

// Each callback waits for the one behind it, like a future's callback that waits for a future.
TEST_F(CompletionsTest, push__a_callback_may_wait_for_a_later_one) {
  Completions completions;
  constexpr int kChain = 20;
  std::array<std::promise<void>, kChain + 1> called;
  for (int i = 0; i < kChain; ++i) {
    completions.push(operation_with([&, i] {
      EXPECT_EQ(called[i + 1].get_future().wait_for(std::chrono::seconds(60)),
                std::future_status::ready);
      called[i].set_value();
    }));
  }
  completions.push(operation_with([&] { called[kChain].set_value(); }));
  completions.end();
  EXPECT_EQ(called[0].get_future().wait_for(std::chrono::seconds(0)), std::future_status::ready);
}

// What it waits for may come while it waits.
TEST_F(CompletionsTest, push__by_a_callback_that_waits_for_it) {
  Completions completions;
  for (int round = 0; round < 20; ++round) {
    std::promise<void> inner;
    std::promise<void> outer;
    completions.push(operation_with([&] {
      completions.push(operation_with([&] { inner.set_value(); }));
      inner.get_future().wait();
      outer.set_value();
    }));
    ASSERT_EQ(outer.get_future().wait_for(std::chrono::seconds(60)), std::future_status::ready);
  }
}

TEST_F(CompletionsTest, end__waits_for_all_that_was_pushed_from_any_thread) {
  std::atomic<int> calls{0};
  {
    Completions completions;
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < 200; ++i) completions.push(operation_with([&] { ++calls; }));
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  EXPECT_EQ(calls, 800);
}

TEST_F(CompletionsTest, end__by_a_callback_does_not_wait_for_itself) {
  auto completions = std::make_unique<Completions>();
  std::promise<bool> was_calling;
  EXPECT_FALSE(completions->is_calling());
  Completions& held = *completions;
  held.push(operation_with(
      [&, owned = std::make_shared<decltype(completions)>(std::move(completions))]() mutable {
        const bool is_calling = (*owned)->is_calling();
        owned->reset();
        was_calling.set_value(is_calling);
      }));
  EXPECT_TRUE(was_calling.get_future().get());
}

}  // namespace
}  // namespace securefabric::net
