#include "net/driver.h"

#include <dirent.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <set>

#include "net/job_fixture.h"

namespace securefabric::net {
namespace {

using base::Duration;
using base::Error;
using base::ErrorCode;
using base::Instant;
using base::Status;

// Well above any scheduling delay, and below the ticks and heartbeats that would hide a forgotten
// wake-up.
constexpr Duration kPrompt = Duration::millis(700);

// --- submit, wait
// ---------------------------------------------------------------------------------

TEST(Driver, wait__drives_a_synchronous_operation_and_calls_back_on_this_thread) {
  DriverJob job(2);
  std::thread other([&] {
    const auto call = job.start(1, kSync);
    EXPECT_TRUE(job.wait(1, *call));
    expect_sum(*call);
  });
  auto call = make_call(job.world(0), kSync);
  std::thread::id called_on;
  call->then = [&] { called_on = std::this_thread::get_id(); };
  ASSERT_TRUE(job.driver(0).submit(call->operation));
  EXPECT_TRUE(job.wait(0, *call));
  EXPECT_EQ(call->callbacks, 1);
  EXPECT_EQ(called_on, std::this_thread::get_id());
  expect_sum(*call);
  EXPECT_TRUE(job.wait(0, *call)) << "a second wait finds it done";
  EXPECT_EQ(call->callbacks, 1);
  other.join();
}

TEST(Driver, wait__works_for_large_operations_of_several_ranks) {
  DriverJob job(3);
  job.all_reduce_everywhere();
  job.all_reduce_everywhere(200'000);
}

TEST(Driver, submit__asynchronous_operations_are_done_by_our_threads) {
  DriverJob job(3);
  for (const size_t count : {1u, 100u, 100'000u}) {
    std::vector<std::shared_ptr<Call>> calls;
    for (uint32_t rank = 0; rank < 3; ++rank) calls.push_back(job.start(rank, {.count = count}));
    for (const auto& call : calls) {
      EXPECT_TRUE(eventually([&] { return call->is_done(); }));
      expect_sum(*call);
    }
    for (const auto& call : calls) {
      EXPECT_TRUE(job.wait(call->operation->group().rank, *call));
      EXPECT_EQ(call->callbacks, 1);
    }
  }
}

// The progress thread has seen others drive and has stepped back when the operation comes.
TEST(Driver, submit__asynchronous_operations_fetch_a_lazy_progress_thread) {
  DriverJob job(2);
  for (int round = 0; round < 50; ++round) {
    job.all_reduce_everywhere();
    const Instant started = now();
    const auto first = job.start(0);
    const auto second = job.start(1);
    EXPECT_TRUE(eventually([&] { return first->is_done() && second->is_done(); }));
    EXPECT_LT(now() - started, kPrompt);
  }
}

// --- delegate, hand_in
// ----------------------------------------------------------------------------

// Whether the progress thread sleeps in epoll, has stepped back, or a waiter drives.
TEST(Driver, delegate__our_threads_start_it_whatever_they_are_doing) {
  DriverJob job(2);
  for (int round = 0; round < 50; ++round) {
    if (round % 3 == 1) job.all_reduce_everywhere();
    std::shared_ptr<Call> held;
    std::thread waiter;
    if (round % 3 == 2) {
      held = job.start(0, {.kind = OperationKind::kReceive, .peer = 1, .tag = 7});
      waiter = std::thread([&] { EXPECT_TRUE(job.wait(0, *held)); });
    }
    const Instant started = now();
    std::vector<std::shared_ptr<Call>> calls;
    for (uint32_t rank = 0; rank < 2; ++rank) {
      calls.push_back(make_call(job.world(rank), {.count = kLarge}));
      EXPECT_TRUE(job.driver(rank).delegate(calls.back()->operation));
    }
    for (const auto& call : calls) {
      EXPECT_TRUE(eventually([&] { return call->is_done(); }));
      expect_sum(*call);
    }
    EXPECT_LT(now() - started, kPrompt);
    if (!held) continue;
    const auto send = job.start(1, {.kind = OperationKind::kSend, .peer = 0, .tag = 7});
    EXPECT_TRUE(job.wait(1, *send));
    waiter.join();
  }
}

TEST(Driver, delegate__is_refused_after_the_end) {
  DriverJob job(1);
  job.driver(0).shutdown(Duration());
  const Status status = job.driver(0).delegate(make_call(job.world(0))->operation);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::kAborted);
  job.driver(0).hand_in([](collective::Engine&, Instant) { FAIL() << "nobody runs it"; });
}

// Two that drive hand each other tasks, each while it holds its own engine.
TEST(Driver, hand_in__between_drivers_in_both_directions) {
  DriverJob job(2);
  std::atomic<int> left{400};
  std::function<void(uint32_t)> pass = [&](uint32_t to) {
    job.driver(to).hand_in([&pass, &left, to](collective::Engine&, Instant) {
      if (left.fetch_sub(1) > 1) pass(1 - to);
    });
  };
  const Instant started = now();
  pass(0);
  pass(1);
  job.all_reduce_everywhere(kLarge);
  EXPECT_TRUE(eventually([&] { return left.load() <= 0; }));
  EXPECT_LT(now() - started, Duration::seconds(5));
  // Those that are under way still refer to this test.
  for (uint32_t rank = 0; rank < 2; ++rank) job.driver(rank).shutdown(Duration());
}

TEST(Driver, submit__keeps_the_order_of_one_thread) {
  DriverJob job(2, {}, sleepy());
  std::vector<std::thread> threads;
  for (uint32_t rank = 0; rank < 2; ++rank) {
    threads.emplace_back([&job, rank] {
      // Ranks that started them in different orders would disagree about the sizes.
      std::vector<std::shared_ptr<Call>> calls;
      for (size_t i = 0; i < 200; ++i) {
        calls.push_back(job.start(rank, {.count = 1 + i * 7 % 50, .is_synchronous = i % 3 == 0}));
      }
      for (const auto& call : calls) EXPECT_TRUE(job.wait(rank, *call));
      for (const auto& call : calls) expect_sum(*call);
      for (const auto& call : calls) EXPECT_TRUE(eventually([&] { return call->is_done(); }));
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// A synchronous call that nobody waits for is announced all the same, if not at once.
TEST(Driver, submit__synchronous_operation_that_nobody_waits_for) {
  DriverJob job(1);
  const auto call = job.start(0, kSync);
  EXPECT_TRUE(eventually([&] { return call->is_done(); }));
  EXPECT_TRUE(job.wait(0, *call));
  EXPECT_EQ(call->callbacks, 1);
}

TEST(Driver, wait__times_out_and_can_be_repeated) {
  DriverJob job(2, {}, sleepy());
  const auto first = job.start(0, kSync);
  EXPECT_FALSE(job.wait(0, *first, Duration()));
  EXPECT_FALSE(job.wait(0, *first, Duration::millis(-5)));
  const Instant started = now();
  EXPECT_FALSE(job.wait(0, *first, Duration::millis(30)));
  EXPECT_GE(now() - started, Duration::millis(30));
  EXPECT_LT(now() - started, Duration::seconds(5));
  EXPECT_EQ(first->callbacks, 0);
  const auto second = job.start(1, kSync);
  EXPECT_TRUE(job.wait(1, *second));
  EXPECT_TRUE(job.wait(0, *first));
  EXPECT_EQ(first->callbacks, 1);
  expect_sum(*first);
}

// After a time-out nobody waits any more: our threads finish the operation.
TEST(Driver, wait__leaves_the_operation_to_the_progress_thread_when_it_times_out) {
  DriverJob job(2);
  const auto first = job.start(0);
  EXPECT_FALSE(job.wait(0, *first, Duration::millis(5)));
  const auto second = job.start(1, kSync);
  EXPECT_TRUE(job.wait(1, *second));
  EXPECT_TRUE(eventually([&] { return first->is_done(); }));
}

TEST(Driver, wait__times_out_while_another_thread_drives) {
  DriverJob job(2, {}, sleepy());
  const auto endless = job.start(0, kSync);
  std::thread driving([&] { EXPECT_TRUE(job.wait(0, *endless)); });
  const auto other = job.start(0, kSync);
  EXPECT_TRUE(eventually([&] { return endless->operation->waiters > 0; }));
  EXPECT_FALSE(job.wait(0, *other, Duration::millis(20)));
  const auto peer_of_endless = job.start(1);
  const auto peer_of_other = job.start(1);
  EXPECT_TRUE(job.wait(0, *other));
  driving.join();
  expect_sum(*endless);
  expect_sum(*other);
}

TEST(Driver, wait__several_threads_wait_for_one_operation) {
  DriverJob job(2, {}, sleepy());
  const auto call = job.start(0, kSync);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] { EXPECT_TRUE(job.wait(0, *call)); });
  }
  EXPECT_TRUE(eventually([&] { return call->operation->waiters == 4; }));
  const auto other = job.start(1);
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(eventually([&] { return call->is_done(); }));
  EXPECT_EQ(call->callbacks, 1);
}

TEST(Driver, wait__several_threads_wait_for_operations_of_different_groups) {
  DriverJob job(2, {}, sleepy());
  std::vector<std::thread> threads;
  for (uint64_t lane = 0; lane < 3; ++lane) {
    for (uint32_t rank = 0; rank < 2; ++rank) {
      const auto group = job.add_group(rank, 100 + lane);
      threads.emplace_back([&job, rank, lane, group] {
        for (int i = 0; i < 100; ++i) {
          const auto call = make_call(group, {.count = 1 + lane * 500, .is_synchronous = true});
          EXPECT_TRUE(job.driver(rank).submit(call->operation));
          EXPECT_TRUE(job.wait(rank, *call));
          expect_sum(*call);
        }
      });
    }
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(Driver, wait__ends_when_a_task_of_another_thread_fails_the_operation) {
  DriverJob job(2, {}, sleepy());
  const auto call = job.start(0, {.count = kLarge, .is_synchronous = true});
  std::thread waiting([&] { EXPECT_TRUE(job.wait(0, *call)); });
  EXPECT_TRUE(eventually([&] { return call->operation->waiters > 0; }));
  EXPECT_TRUE(job.driver(0).run([&](collective::Engine& engine, Instant at) {
    engine.abort_group(*job.world(0), Error{ErrorCode::kAborted, "given up"}, at);
  }));
  waiting.join();
  EXPECT_TRUE(failed_with(*call->operation, ErrorCode::kAborted, "given up"));
  // The other rank is told.
  const auto other = job.start(1, {.count = kLarge});
  EXPECT_TRUE(job.wait(1, *other));
  EXPECT_TRUE(failed_with(*other->operation, ErrorCode::kAborted, "given up"));
}

TEST(Driver, wait__ends_at_the_deadline_of_the_operation) {
  DriverJob job(2);
  const auto call = job.start(0, {.deadline = now() + Duration::millis(50)});
  EXPECT_TRUE(eventually([&] { return call->is_done(); })) << "nobody waits";
  EXPECT_TRUE(failed_with(*call->operation, ErrorCode::kTimeout, "Timed out"));
}

// --- on_done
// --------------------------------------------------------------------------------------

TEST(Driver, on_done__may_submit_wait_and_run_because_no_lock_is_held) {
  DriverJob job(2, {}, sleepy());
  std::vector<std::thread> threads;
  for (const bool is_synchronous : {false, true}) {
    for (uint32_t rank = 0; rank < 2; ++rank) {
      const auto group = job.add_group(rank, is_synchronous ? 20 : 21);
      threads.emplace_back([&job, rank, group, is_synchronous] {
        const CallOptions options = {.is_synchronous = is_synchronous};
        const auto first = make_call(group, options);
        std::shared_ptr<Call> second;
        std::atomic<bool> is_over{false};
        first->then = [&] {
          EXPECT_TRUE(job.driver(rank).run([](collective::Engine&, Instant) {}));
          second = make_call(group, options);
          EXPECT_TRUE(job.driver(rank).submit(second->operation));
          EXPECT_TRUE(job.wait(rank, *second));
          is_over = true;
        };
        EXPECT_TRUE(job.driver(rank).submit(first->operation));
        if (is_synchronous) {
          EXPECT_TRUE(job.wait(rank, *first));
        }
        EXPECT_TRUE(eventually([&] { return is_over.load(); }));
        expect_sum(*second);
        EXPECT_TRUE(eventually([&] { return second->is_done(); }));
      });
    }
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(Driver, on_done__chain_of_asynchronous_operations) {
  DriverJob job(2);
  constexpr int kLength = 100;
  std::array<std::atomic<int>, 2> finished{};
  std::array<std::vector<std::shared_ptr<Call>>, 2> calls;
  std::function<void(uint32_t)> start_next = [&](uint32_t rank) {
    if (calls[rank].size() == kLength) {
      ++finished[rank];
      return;
    }
    calls[rank].push_back(make_call(job.world(rank)));
    calls[rank].back()->then = [&, rank] { start_next(rank); };
    EXPECT_TRUE(job.driver(rank).submit(calls[rank].back()->operation));
  };
  start_next(0);
  start_next(1);
  EXPECT_TRUE(eventually([&] { return finished[0] == 1 && finished[1] == 1; }));
  for (const auto& of_rank : calls) {
    for (const auto& call : of_rank) EXPECT_EQ(call->callbacks, 1);
  }
}

// --- run, post
// ------------------------------------------------------------------------------------

TEST(Driver, run__from_many_threads_while_somebody_sleeps_in_wait) {
  DriverJob job(2, {}, sleepy());
  const auto call = job.start(0, kSync);
  std::thread waiting([&] { EXPECT_TRUE(job.wait(0, *call)); });
  EXPECT_TRUE(eventually([&] { return call->operation->waiters > 0; }));
  int tasks_run = 0;  // guarded by the engine's lock, which is what this is about
  std::atomic<int> tasks_posted{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int task = 0; task < 200; ++task) {
        bool has_run = false;
        EXPECT_TRUE(job.driver(0).run([&](collective::Engine&, Instant) {
          ++tasks_run;
          has_run = true;
        }));
        EXPECT_TRUE(has_run);
        EXPECT_TRUE(job.driver(0).post([&](collective::Engine&, Instant) { ++tasks_posted; }));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(eventually([&] { return tasks_posted == 800; }));
  EXPECT_TRUE(job.driver(0).run([&](collective::Engine&, Instant) { EXPECT_EQ(tasks_run, 800); }));
  const auto other = job.start(1);
  waiting.join();
}

// Timers that a task sets are served although nobody waits and no socket will ever be readable.
TEST(Driver, run__makes_the_progress_thread_serve_new_timers) {
  UnreliableCalls calls;
  DriverJob job(1, {.calls = &calls});
  std::vector<UdpSocket> sockets;  // of a rank that never answers
  const auto config = make_config(1, 2, {}, sockets);
  // A second driver whose world has two ranks; the first has seen nothing of it.
  std::vector<UdpSocket> own_sockets;
  auto own = make_config(0, 2, {.calls = &calls}, own_sockets);
  const auto driver =
      Driver::make(std::move(own), std::move(own_sockets), {}, [](const transport::PeerWanted&) {
      }).value();
  transport::PeerDescription peer;
  peer.rank = base::Rank{1};
  const auto public_key = crypto::KeyPair::from_private([] {
                            auto bytes = random_bytes(32, 5);
                            return crypto::SecretBuffer::copy_and_wipe(bytes);
                          }())
                              .public_key();
  peer.public_key.assign(public_key.begin(), public_key.end());
  peer.spi_base = kSpiBase;
  for (const UdpSocket& socket : sockets) peer.addresses.push_back(socket.local_address());
  peer.datagram_bytes_max = transport::kDatagramBytesMax;
  peer.entry = {1};
  // It waits for ever now: there is neither a peer nor a timer.
  EXPECT_TRUE(driver->run([](collective::Engine&, Instant) {}));
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_TRUE(driver->run([&](collective::Engine& engine, Instant at) {
    engine.endpoint().set_own_entry(random_bytes(1, 1));
    engine.endpoint().require_peer(peer.rank, at);
    engine.install_peer(peer, at);
  }));
  const int sends = calls.sends;
  EXPECT_TRUE(eventually([&] { return calls.sends > sends + 2; }, kPrompt)) << "no probe was sent";
}

// --- Nobody is forgotten
// --------------------------------------------------------------------------

// The timer of a packet that was lost is earlier than what the progress thread sleeps for.
TEST(Driver, progress__serves_the_timers_of_asynchronous_operations) {
  UnreliableCalls calls;
  const Duration heartbeat = Duration::seconds(9);
  DriverJob job(2, {.calls = &calls, .heartbeat = heartbeat}, {}, {.heartbeat = heartbeat});
  job.all_reduce_everywhere();
  for (int round = 0; round < 20; ++round) {
    EXPECT_TRUE(eventually([&] {  // long enough for the progress thread to be in epoll
      std::this_thread::sleep_for(std::chrono::milliseconds(round));
      return true;
    }));
    calls.sends_lost = 1;
    const Instant started = now();
    const auto first = job.start(0);
    const auto second = job.start(1);
    EXPECT_TRUE(eventually([&] { return first->is_done() && second->is_done(); }));
    EXPECT_LT(now() - started, kPrompt) << "round " << round;
  }
}

// Threads of one rank's driver that are not the test's own, with how often they went to sleep.
std::set<std::string> threads_of_process() {
  std::set<std::string> threads;
  DIR* const tasks = ::opendir("/proc/self/task");
  while (const dirent* entry = ::readdir(tasks)) {
    if (entry->d_name[0] != '.') threads.insert(entry->d_name);
  }
  ::closedir(tasks);
  return threads;
}

int64_t sleeps_of(const std::set<std::string>& threads) {
  int64_t sum = 0;
  for (const std::string& thread : threads) {
    std::ifstream status("/proc/self/task/" + thread + "/status");
    for (std::string line; std::getline(status, line);) {
      if (line.starts_with("voluntary_ctxt_switches:")) sum += std::stoll(line.substr(24));
    }
  }
  return sum;
}

TEST(Driver, wait__of_synchronous_operations_wakes_no_other_thread) {
  const std::set<std::string> before = threads_of_process();
  DriverJob job(2);
  std::set<std::string> own = threads_of_process();
  for (const std::string& thread : before) own.erase(thread);
  ASSERT_EQ(own.size(), 4u) << "two of each driver";
  constexpr int kRounds = 3000;
  const auto loop = [&](uint32_t rank) {
    for (int i = 0; i < kRounds; ++i) {
      const auto call = job.start(rank, kSync);
      EXPECT_TRUE(job.wait(rank, *call));
    }
  };
  std::thread other(loop, 1);
  const int64_t sleeps_before = sleeps_of(own);
  const Instant started = now();
  loop(0);
  const int64_t ticks = 2 * (now() - started).millis() / 2;  // of two progress threads, 2 ms each
  EXPECT_LT(sleeps_of(own) - sleeps_before, ticks + kRounds / 2);
  other.join();
}

// Everything at once: synchronous and asynchronous operations of several groups, tasks, and waits
// that time out, on every rank.
TEST(Driver, stress__mixed_operations_of_several_threads) {
  constexpr int kRounds = 700;
  constexpr uint64_t kLanes = 3;
  DriverJob job(2, {}, sleepy());
  std::atomic<int> slow_calls{0};
  std::atomic<bool> is_over{false};
  const auto lane_loop = [&](uint32_t rank, uint64_t lane, const std::shared_ptr<Group>& group) {
    base::Random random(lane * 2 + rank);
    for (int i = 0; i < kRounds; ++i) {
      const uint64_t dice = random.below(8);
      const Instant started = now();
      const auto call =
          make_call(group, {.count = i % 50 == 0 ? 20'000u : 3u, .is_synchronous = dice < 4});
      ASSERT_TRUE(job.driver(rank).submit(call->operation));
      if (dice == 7) (void)job.wait(rank, *call, Duration::micros(20));
      if (dice < 6) {
        ASSERT_TRUE(job.wait(rank, *call)) << "lane " << lane << " round " << i;
      }
      ASSERT_TRUE(eventually([&] { return call->is_done(); })) << "lane " << lane << " round " << i;
      ASSERT_EQ(call->callbacks, 1);
      expect_sum(*call);
      if (now() - started > kPrompt) ++slow_calls;
    }
  };
  std::vector<std::thread> threads;
  for (uint32_t rank = 0; rank < 2; ++rank) {
    for (uint64_t lane = 0; lane < kLanes; ++lane) {
      threads.emplace_back(lane_loop, rank, lane, job.add_group(rank, 30 + lane));
    }
  }
  std::thread tasks([&] {
    for (int i = 0; !is_over; ++i) {
      EXPECT_TRUE(job.driver(0).run([](collective::Engine&, Instant) {}));
      EXPECT_TRUE(job.driver(1).post([](collective::Engine&, Instant) {}));
      std::this_thread::sleep_for(std::chrono::microseconds(i % 7 * 100));
    }
  });
  for (std::thread& thread : threads) thread.join();
  is_over = true;
  tasks.join();
  // A machine that stands still for a moment delays one call of each thread.
  EXPECT_LE(slow_calls, 12) << "of " << 2 * kLanes * kRounds;
}

// --- Sockets that fail
// ----------------------------------------------------------------------------

TEST(Driver, blocked_socket__the_waiter_finishes_the_burst_later) {
  UnreliableCalls calls;
  DriverJob job(2, {.calls = &calls}, sleepy());
  job.all_reduce_everywhere();
  calls.error = EAGAIN;
  const auto first = job.start(0, {.count = kLarge, .is_synchronous = true});
  const auto second = job.start(1, {.count = kLarge});
  EXPECT_FALSE(job.wait(0, *first, Duration::millis(20)));
  calls.error = 0;
  EXPECT_TRUE(job.wait(0, *first));
  EXPECT_TRUE(job.wait(1, *second));
  expect_sum(*first);
  expect_sum(*second);
}

TEST(Driver, blocked_socket__the_progress_thread_finishes_the_burst_later) {
  UnreliableCalls calls;
  DriverJob job(2, {.calls = &calls});
  job.all_reduce_everywhere();
  calls.error = EAGAIN;
  const auto first = job.start(0, {.count = kLarge});
  const auto second = job.start(1, {.count = kLarge});
  const int sends = calls.sends;
  EXPECT_TRUE(eventually([&] { return calls.sends > sends + 3; })) << "it tries again";
  EXPECT_FALSE(first->is_done());
  calls.error = 0;
  EXPECT_TRUE(eventually([&] { return first->is_done() && second->is_done(); }));
  expect_sum(*first);
  expect_sum(*second);
}

TEST(Driver, fatal_socket__fails_every_operation_and_leaves_the_process_alone) {
  UnreliableCalls calls;
  DriverJob job(2, {.calls = &calls}, sleepy());
  job.all_reduce_everywhere();
  const auto running = job.start(0);
  const auto awaited = make_call(job.add_group(0, 40), kSync);
  EXPECT_TRUE(job.driver(0).submit(awaited->operation));
  std::thread waiting([&] { EXPECT_TRUE(job.wait(0, *awaited)); });
  EXPECT_TRUE(eventually([&] { return awaited->operation->waiters > 0; }));
  calls.error = EBADF;
  const auto later = job.start(0);
  waiting.join();
  EXPECT_TRUE(eventually([&] { return running->is_done() && later->is_done(); }));
  const std::string socket = "UDP socket 127.0.0.1:";
  EXPECT_TRUE(failed_with(*awaited->operation, ErrorCode::kSystem, socket));
  EXPECT_TRUE(failed_with(*running->operation, ErrorCode::kSystem, socket));
  EXPECT_TRUE(failed_with(*later->operation, ErrorCode::kSystem, "cannot be used any more"));
  // Also in a group that comes later, and without a thread that spins on the dead socket.
  const auto afterwards = make_call(job.add_group(0, 41), kSync);
  EXPECT_TRUE(job.driver(0).submit(afterwards->operation));
  EXPECT_TRUE(job.wait(0, *afterwards));
  EXPECT_TRUE(failed_with(*afterwards->operation, ErrorCode::kSystem, socket));
  const int sends = calls.sends;
  EXPECT_TRUE(job.driver(0).run([](collective::Engine&, Instant) {}));
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(calls.sends, sends);
}

}  // namespace
}  // namespace securefabric::net
