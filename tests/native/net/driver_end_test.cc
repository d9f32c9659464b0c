// How a driver ends, and what a fork and a last reference mean to it.
#include "net/driver.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>

#include "net/job_fixture.h"

namespace securefabric::net {
namespace {

using base::Duration;
using base::Error;
using base::ErrorCode;
using base::Instant;

// --- drain, shutdown
// ------------------------------------------------------------------------------

TEST(Driver, drain__waits_until_everything_sent_has_arrived) {
  UnreliableCalls calls;
  DriverJob job(2, {.calls = &calls});
  job.all_reduce_everywhere();
  calls.sends_lost = 3;
  const auto send = job.start(0, {.kind = OperationKind::kSend, .count = 100, .peer = 1});
  EXPECT_TRUE(job.wait(0, *send)) << "small messages are copied";
  job.driver(0).drain(kPatience);
  bool is_drained = false;
  EXPECT_TRUE(job.driver(0).run(
      [&](collective::Engine& engine, Instant) { is_drained = engine.endpoint().is_drained(); }));
  EXPECT_TRUE(is_drained);
  job.destroy(0);
  const auto receive = job.start(1, {.kind = OperationKind::kReceive, .count = 100, .peer = 0});
  EXPECT_TRUE(job.wait(1, *receive));
  EXPECT_FALSE(receive->operation->error);
  EXPECT_EQ(receive->values(), std::vector<int64_t>(100, 1));
}

TEST(Driver, drain__is_bounded) {
  UnreliableCalls calls;
  DriverJob job(2, {.calls = &calls});
  job.all_reduce_everywhere();
  calls.error = EAGAIN;
  const auto send = job.start(0, {.kind = OperationKind::kSend, .count = 100, .peer = 1});
  const Instant started = now();
  job.driver(0).drain(Duration::millis(30));
  EXPECT_GE(now() - started, Duration::millis(30));
  EXPECT_LT(now() - started, Duration::seconds(5));
}

TEST(Driver, shutdown__fails_what_runs_whoever_waits) {
  DriverJob job(2, {}, sleepy());
  job.all_reduce_everywhere();
  const auto driven = job.start(0, {.count = kLarge, .is_synchronous = true});
  const auto awaited = job.start(0, kSync);
  const auto unawaited = job.start(0, kSync);
  const auto asynchronous = job.start(0);
  std::thread driving([&] { EXPECT_TRUE(job.wait(0, *driven)); });
  std::thread waiting([&] { EXPECT_TRUE(job.wait(0, *awaited)); });
  EXPECT_TRUE(eventually(
      [&] { return driven->operation->waiters > 0 && awaited->operation->waiters > 0; }));
  const Instant started = now();
  job.driver(0).shutdown(Duration());
  EXPECT_LT(now() - started, Duration::seconds(5));
  driving.join();
  waiting.join();
  for (const auto& call : {driven, awaited, unawaited, asynchronous}) {
    EXPECT_TRUE(failed_with(*call->operation, ErrorCode::kAborted, "was shut down"));
    EXPECT_EQ(call->callbacks, 1);
  }
  // The goodbye reaches the peer, whose operation names it.
  const auto other = job.start(1, {.count = kLarge, .is_synchronous = true});
  EXPECT_TRUE(job.wait(1, *other));
  EXPECT_TRUE(failed_with(*other->operation, ErrorCode::kPeerLost, "rank 0"));
}

TEST(Driver, shutdown__refuses_everything_afterwards) {
  DriverJob job(1);
  const auto done = job.start(0);
  job.driver(0).shutdown(Duration::seconds(1));
  job.driver(0).shutdown(Duration::seconds(1));
  EXPECT_TRUE(job.wait(0, *done));
  EXPECT_EQ(done->callbacks, 1);
  const auto late = make_call(job.world(0));
  const auto status = job.driver(0).submit(late->operation);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::kAborted);
  EXPECT_FALSE(job.driver(0).run([](collective::Engine&, Instant) { FAIL(); }));
  EXPECT_FALSE(job.driver(0).post([](collective::Engine&, Instant) { FAIL(); }));
  EXPECT_FALSE(job.wait(0, *late)) << "an operation that was never submitted";
  job.driver(0).drain(Duration::seconds(1));
  EXPECT_EQ(late->callbacks, 0);
}

// Somebody waits for an operation that nobody submitted: our mistake, but no reason to hang.
TEST(Driver, shutdown__ends_a_wait_that_cannot_end) {
  DriverJob job(1, {}, sleepy());
  const auto lost = make_call(job.world(0));
  std::thread waiting([&] { EXPECT_FALSE(job.driver(0).wait(lost->operation, Instant::never())); });
  EXPECT_TRUE(eventually([&] { return lost->operation->waiters > 0; }));
  job.driver(0).shutdown(Duration());
  waiting.join();
}

TEST(Driver, shutdown__races_with_submissions_and_with_itself) {
  for (int round = 0; round < 30; ++round) {
    DriverJob job(1);
    std::vector<std::thread> threads;
    std::atomic<int> accepted{0};
    std::atomic<int> called_back{0};
    std::atomic<int> tasks{0};
    for (int i = 0; i < 3; ++i) {
      threads.emplace_back([&, i] {
        while (true) {
          const auto call = make_call(job.world(0), {.is_synchronous = i == 0});
          call->operation->on_done = [&called_back, call] { ++called_back; };
          if (!job.driver(0).submit(call->operation)) {
            call->operation->on_done = nullptr;  // it would own itself
            return;
          }
          ++accepted;
          if (i == 0) (void)job.wait(0, *call);
          if (job.driver(0).run([&](collective::Engine&, Instant) { ++tasks; })) --tasks;
        }
      });
    }
    EXPECT_TRUE(eventually([&] { return accepted > 20; }));
    std::thread second([&] { job.driver(0).shutdown(Duration::millis(10)); });
    job.driver(0).shutdown(Duration::millis(10));
    second.join();
    for (std::thread& thread : threads) thread.join();
    EXPECT_TRUE(eventually([&] { return accepted == called_back; }));
    EXPECT_EQ(tasks, 0) << "a task runs exactly if run() says so";
  }
}

TEST(Driver, shutdown__may_be_called_by_on_done) {
  for (int round = 0; round < 20; ++round) {
    DriverJob job(1);
    auto call = make_call(job.world(0));
    call->then = [&] { job.driver(0).shutdown(Duration::millis(1)); };
    EXPECT_TRUE(job.driver(0).submit(call->operation));
    if (round % 2 == 0) job.driver(0).shutdown(Duration::millis(1));
    EXPECT_TRUE(eventually([&] { return call->is_done(); }));
    job.destroy(0);
  }
}

TEST(Driver, destroy__with_pending_operations_that_outlive_it) {
  DriverJob job(2, {}, sleepy());
  job.all_reduce_everywhere();
  const auto call = job.start(0);
  const auto synchronous = job.start(0, kSync);
  job.destroy(0);
  EXPECT_EQ(call->callbacks, 1);
  EXPECT_EQ(synchronous->callbacks, 1);
  EXPECT_TRUE(failed_with(*call->operation, ErrorCode::kAborted, "was shut down"));
  EXPECT_TRUE(failed_with(*synchronous->operation, ErrorCode::kAborted, "was shut down"));
}

// A Work owns its fabric, and the callback may drop the last Work.
TEST(Driver, destroy__by_the_callback_that_holds_the_last_reference) {
  for (int round = 0; round < 20; ++round) {
    DriverJob job(2);
    job.all_reduce_everywhere();
    std::array<std::shared_ptr<Call>, 3> calls;
    for (auto& call : calls) call = make_call(job.world(0));
    std::shared_ptr<Driver> driver = job.release(0);
    calls[0]->operation->on_done = [held = driver, raw = calls[0].get()] { ++raw->callbacks; };
    for (auto& call : calls) EXPECT_TRUE(driver->submit(call->operation));
    driver.reset();
    std::array<std::shared_ptr<Call>, 3> others;
    for (auto& call : others) call = job.start(1);
    for (const auto& call : calls) {
      EXPECT_TRUE(eventually([&] { return call->is_done(); })) << "also those behind it";
    }
    for (const auto& call : others) EXPECT_TRUE(job.wait(1, *call));
  }
}

// --- fork
// -----------------------------------------------------------------------------------------

TEST(Driver, fork__the_child_refuses_everything) {
  DriverJob job(2);
  job.all_reduce_everywhere();
  const auto pending = job.start(0);
  const auto call = make_call(job.world(0));
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(20);
    Driver& driver = job.driver(0);
    const auto is_forked = [](const base::Status& status) {
      return !status && status.error().code == ErrorCode::kForked;
    };
    bool is_right = is_forked(driver.submit(call->operation));
    is_right =
        is_right && is_forked(driver.run([](collective::Engine&, Instant) { std::abort(); }));
    is_right =
        is_right && is_forked(driver.post([](collective::Engine&, Instant) { std::abort(); }));
    is_right = is_right && !driver.wait(pending->operation, Instant::never());
    driver.drain(Duration::seconds(1));
    driver.shutdown(Duration::seconds(1));
    ::_exit(is_right ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  const auto other = job.start(1);
  EXPECT_TRUE(job.wait(0, *pending)) << "the parent goes on";
}

}  // namespace
}  // namespace securefabric::net
