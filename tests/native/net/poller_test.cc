#include "net/poller.h"

#include <gtest/gtest.h>

#include <atomic>
#include <set>
#include <thread>
#include <vector>

#include "net/socket_fixture.h"

namespace securefabric::net {
namespace {

Poller make_poller() {
  return Poller::make().value();
}

void send_one(UdpSocket& from, const UdpSocket& to) {
  const auto bytes = random_bytes(10, 1);
  EXPECT_EQ(from.send_burst(to.local_address(), bytes, 10).outcome, SendOutcome::kSent);
}

TEST(Poller, wait__returns_at_its_timeout_and_not_before) {
  Poller poller = make_poller();
  for (const base::Duration timeout :
       {base::Duration::nanos(1), base::Duration::micros(200), base::Duration::millis(2)}) {
    const base::Instant start = now();
    const auto result = poller.wait(timeout);
    EXPECT_GE(now() - start, timeout);
    EXPECT_TRUE(result.value().ready.empty());
    EXPECT_FALSE(result.value().was_woken);
  }
}

TEST(Poller, wait__zero_only_looks) {
  Poller poller = make_poller();
  EXPECT_FALSE(poller.wait(base::Duration()).value().was_woken);
  EXPECT_FALSE(poller.wait(base::Duration::seconds(-1)).value().was_woken);
}

TEST(Poller, wait__reports_the_token_of_a_readable_socket) {
  Poller poller = make_poller();
  UdpSocket quiet = bind_or_die();
  UdpSocket busy = bind_or_die();
  ASSERT_TRUE(poller.add(quiet.fd(), 5).ok());
  ASSERT_TRUE(poller.add(busy.fd(), 6).ok());
  send_one(quiet, busy);
  const auto result = poller.wait(kPatience);
  ASSERT_EQ(result.value().ready.size(), 1u);
  EXPECT_EQ(result.value().ready[0].token, 6u);
  EXPECT_TRUE(result.value().ready[0].is_readable);
  EXPECT_FALSE(result.value().ready[0].is_writable);
}

TEST(Poller, watch_writable__reports_room_only_while_wanted) {
  Poller poller = make_poller();
  const UdpSocket socket = bind_or_die();
  ASSERT_TRUE(poller.add(socket.fd(), 1).ok());
  EXPECT_TRUE(poller.wait(base::Duration()).value().ready.empty());
  ASSERT_TRUE(poller.watch_writable(socket.fd(), 1, true).ok());
  const auto result = poller.wait(kPatience);
  ASSERT_EQ(result.value().ready.size(), 1u);
  EXPECT_TRUE(result.value().ready[0].is_writable);
  ASSERT_TRUE(poller.watch_writable(socket.fd(), 1, false).ok());
  EXPECT_TRUE(poller.wait(base::Duration()).value().ready.empty());
}

TEST(Poller, remove__forgets_the_socket) {
  Poller poller = make_poller();
  UdpSocket socket = bind_or_die();
  ASSERT_TRUE(poller.add(socket.fd(), 1).ok());
  send_one(socket, socket);
  ASSERT_TRUE(poller.remove(socket.fd()).ok());
  EXPECT_TRUE(poller.wait(base::Duration()).value().ready.empty());
  EXPECT_FALSE(poller.remove(socket.fd()).ok());
  EXPECT_FALSE(poller.add(-1, 1).ok());
}

TEST(Poller, wake__before_wait_is_not_lost_and_is_taken_once) {
  Poller poller = make_poller();
  poller.wake();
  poller.wake();
  EXPECT_TRUE(poller.wait(base::Duration::forever()).value().was_woken);
  EXPECT_FALSE(poller.wait(base::Duration()).value().was_woken);
}

TEST(Poller, wake__ends_an_endless_wait_of_another_thread) {
  Poller poller = make_poller();
  std::atomic<int> posted = 0;
  int seen = 0;
  std::thread waker([&] {
    posted.store(42, std::memory_order_relaxed);
    poller.wake();
  });
  while (!poller.wait(base::Duration::forever()).value().was_woken) {
  }
  seen = posted.load(std::memory_order_relaxed);
  waker.join();
  EXPECT_EQ(seen, 42);
}

TEST(Poller, wake__many_threads_end_every_round) {
  Poller poller = make_poller();
  constexpr int kThreads = 4;
  constexpr int kRounds = 500;
  std::atomic<int> posted = 0;
  std::vector<std::thread> wakers;
  for (int i = 0; i < kThreads; ++i) {
    wakers.emplace_back([&] {
      for (int round = 0; round < kRounds; ++round) {
        posted.fetch_add(1);
        poller.wake();
      }
    });
  }
  const base::Instant deadline = now() + kPatience;
  while (posted.load() < kThreads * kRounds && now() < deadline) {
    EXPECT_TRUE(poller.wait(deadline - now()).value().was_woken);
  }
  EXPECT_EQ(posted.load(), kThreads * kRounds);
  for (std::thread& waker : wakers) waker.join();
}

TEST(Poller, wait__disarms_the_timer_of_an_earlier_wait) {
  Poller poller = make_poller();
  poller.wake();
  EXPECT_TRUE(poller.wait(base::Duration::micros(500)).value().was_woken);
  const base::Instant fired = now() + base::Duration::millis(1);
  while (now() < fired) {
  }  // the timer that the first wait left armed has fired: it must not end the next one
  std::thread waker([&poller] { poller.wake(); });
  EXPECT_TRUE(poller.wait(base::Duration::forever()).value().was_woken);
  waker.join();
}

TEST(Poller, wait__more_ready_sockets_than_one_report_all_get_their_turn) {
  Poller poller = make_poller();
  constexpr size_t kSockets = Poller::kReadyMax + 10;
  std::vector<UdpSocket> sockets;
  for (uint32_t i = 0; i < kSockets; ++i) {
    sockets.push_back(bind_or_die());
    ASSERT_TRUE(poller.add(sockets.back().fd(), i).ok());
  }
  for (UdpSocket& socket : sockets) send_one(sockets[0], socket);
  std::set<uint32_t> seen;
  const base::Instant deadline = now() + kPatience;
  while (seen.size() < kSockets && now() < deadline) {
    const auto result = poller.wait(deadline - now());
    ASSERT_LE(result.value().ready.size(), Poller::kReadyMax);
    for (const ReadySocket& ready : result.value().ready) seen.insert(ready.token);
  }
  EXPECT_EQ(seen.size(), kSockets);
}

}  // namespace
}  // namespace securefabric::net
