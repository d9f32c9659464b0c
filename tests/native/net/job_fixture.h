// Ranks of one job inside this process, talking over loopback sockets: their operations, and the
// drivers that run them. Nothing here sleeps for a fixed time; every wait has a deadline.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "collective/plan.h"
#include "net/driver.h"
#include "net/socket_fixture.h"

namespace securefabric::net {

using collective::Group;
using collective::Operation;
using collective::OperationKind;

inline bool eventually(const std::function<bool()>& condition,
                       base::Duration patience = kPatience) {
  const base::Instant deadline = now() + patience;
  while (!condition()) {
    if (now() >= deadline) return false;
    std::this_thread::yield();
  }
  return true;
}

// Fails the sends of one rank's sockets, or loses them, as long as it is told to. Any thread.
class UnreliableCalls : public SocketCalls {
 public:
  std::atomic<int> error{0};          // errno of every send
  std::atomic<int> sends_lost{0};     // so many sends are taken and never arrive
  std::atomic<int> sends_kept{-1};    // so many succeed before `error` begins; -1: none
  mutable std::atomic<int> sends{0};  // attempts

  ssize_t sendmsg(int fd, const msghdr* message, int flags) const override {
    if (const int failure = next_error(); failure != 0) return fail(failure);
    if (is_lost()) return static_cast<ssize_t>(message->msg_iov->iov_len);
    return SocketCalls::sendmsg(fd, message, flags);
  }
  int sendmmsg(int fd, mmsghdr* messages, unsigned count, int flags) const override {
    if (const int failure = next_error(); failure != 0) return fail(failure);
    if (is_lost()) return static_cast<int>(count);
    // One by one, so that bursts are cut short.
    return SocketCalls::sendmmsg(fd, messages, std::min(count, 1u), flags);
  }

 private:
  int next_error() const {
    ++sends;
    auto& kept = const_cast<std::atomic<int>&>(sends_kept);
    if (kept.load() > 0) {
      --kept;
      return 0;
    }
    return error.load();
  }
  bool is_lost() const {
    auto& lost = const_cast<std::atomic<int>&>(sends_lost);
    if (lost.load() <= 0) return false;
    --lost;
    return true;
  }
  static int fail(int failure) {
    errno = failure;
    return -1;
  }
};

// One operation of one rank; counts the calls of on_done. The memory belongs to the operation, so
// that a test may leave early.
struct Call {
  std::shared_ptr<std::vector<int64_t>> memory;  // in and out
  std::shared_ptr<Operation> operation;
  std::atomic<int> callbacks{0};  // of on_done
  std::function<void()> then;     // run by on_done, before counting

  const std::vector<int64_t>& values() const { return *memory; }
  bool is_done() const { return callbacks.load() > 0; }
};

struct CallOptions {
  OperationKind kind = OperationKind::kAllReduce;  // kAllReduce (SUM), kBarrier, kSend, kReceive
  size_t count = 1;                                // int64 elements
  bool is_synchronous = false;                     // a wait follows at once
  uint32_t peer = 0;                               // kSend and kReceive
  uint32_t tag = 0;                                // kSend and kReceive
  base::Instant deadline = base::Instant::never();
};

// Sleeps early, so that tests meet the sleeping waiter too.
inline DriverOptions sleepy() {
  return {.spin = base::Duration::micros(5), .yields_while_spinning = true};
}

inline constexpr CallOptions kSync = {.is_synchronous = true};
// Elements of an operation that cannot end before every rank has started it: small messages are
// sent ahead.
inline constexpr size_t kLarge = 50'000;

// Every element is the group rank + 1. As native/torch/call.cc builds it.
inline std::shared_ptr<Call> make_call(const std::shared_ptr<Group>& group,
                                       const CallOptions& options = {}) {
  auto call = std::make_shared<Call>();
  call->memory = std::make_shared<std::vector<int64_t>>(options.count, group->rank + 1);
  const uint64_t bytes = options.count * sizeof(int64_t);
  collective::CollectiveRequest plan;
  plan.kind = options.kind;
  plan.element_bytes = sizeof(int64_t);
  plan.rank = group->rank;
  plan.size = group->size();
  plan.root = options.peer;
  collective::OperationRequest request;
  request.group = group;
  request.kind = options.kind;
  request.data_type = collective::DataType::kInt64;
  request.tag = options.tag;
  request.deadline = options.deadline;
  if (options.kind != OperationKind::kBarrier) {
    plan.inputs = plan.outputs = {collective::Region{0, 0, bytes}};
    request.count = options.count;
    request.buffers = {base::MutableBytes(reinterpret_cast<uint8_t*>(call->memory->data()), bytes)};
  }
  if (options.kind == OperationKind::kAllReduce) {
    plan.reduce_op = request.reduce_op = collective::ReduceOp::kSum;
  }
  plan.scratch_buffer = static_cast<uint32_t>(request.buffers.size());
  request.schedule = collective::plan(plan);
  call->operation = std::shared_ptr<Operation>(
      new Operation(std::move(request)),
      [memory = call->memory](const Operation* operation) { delete operation; });
  call->operation->is_synchronous = options.is_synchronous;
  call->operation->on_done = [weak = std::weak_ptr<Call>(call)] {
    const auto held = weak.lock();
    if (!held) return;
    if (held->then) held->then();
    held->callbacks.fetch_add(1);
  };
  return call;
}

inline void expect_sum(const Call& call) {
  const int64_t size = call.operation->group().size();
  ASSERT_FALSE(call.operation->error) << call.operation->error->message;
  for (const int64_t value : call.values()) ASSERT_EQ(value, size * (size + 1) / 2);
}

inline testing::AssertionResult failed_with(const Operation& operation, base::ErrorCode code,
                                            const std::string& part = "") {
  if (!operation.is_visible) return testing::AssertionFailure() << "not done";
  if (!operation.error) return testing::AssertionFailure() << "succeeded";
  if (operation.error->code != code || operation.error->message.find(part) == std::string::npos) {
    return testing::AssertionFailure()
           << base::error_code_name(operation.error->code) << ": " << operation.error->message;
  }
  return testing::AssertionSuccess();
}

struct RankOptions {
  const SocketCalls* calls = nullptr;  // of its sockets
  bool use_gso = true;                 // see UdpSocketOptions
  base::Duration heartbeat = transport::kHeartbeatDefault;
  base::Duration death_timeout = transport::kDeathTimeoutDefault;
};

inline constexpr base::Spi kSpiBase{0x51F00000};

// What a rank of a test job is made of. `sockets` is filled.
inline transport::EndpointConfig make_config(uint32_t rank, uint32_t world_size,
                                             const RankOptions& options,
                                             std::vector<UdpSocket>& sockets) {
  UdpSocketOptions socket_options;
  socket_options.calls = options.calls;
  socket_options.use_gso = options.use_gso;
  for (int i = 0; i < 2; ++i) sockets.push_back(bind_or_die(socket_options));
  transport::EndpointConfig config;
  config.rank = base::Rank{rank};
  config.world_size = world_size;
  config.aead = crypto::find_provider(crypto::Suite::kAes256Gcm).value();
  auto private_key = random_bytes(32, 1000 + rank);
  auto job_secret = random_bytes(32, 7);
  config.private_key = crypto::SecretBuffer::copy_and_wipe(private_key);
  config.job_secret = crypto::SecretBuffer::copy_and_wipe(job_secret);
  config.spi_base = kSpiBase;
  for (const auto& socket : sockets) config.sockets.push_back(socket.local_address().family());
  config.draw_private_key = [draws = base::Random(2'000 + rank)]() mutable {
    std::vector<uint8_t> key(32);
    draws.fill(key);
    return crypto::SecretBuffer::copy_and_wipe(key);
  };
  config.draw_challenge = [draws = base::Random(3'000 + rank)]() mutable { return draws.next(); };
  config.random_seed = 99 + rank;
  config.heartbeat = options.heartbeat;
  config.death_timeout = options.death_timeout;
  return config;
}

// The entry of a rank, as the others install it.
inline transport::PeerDescription describe(const transport::Endpoint& endpoint,
                                           const std::vector<UdpSocket>& sockets) {
  const uint32_t rank = endpoint.config().rank.value;
  transport::PeerDescription peer;
  peer.rank = base::Rank{rank};
  peer.boot_id[0] = static_cast<uint8_t>(rank + 1);
  const auto public_key = endpoint.public_key();
  peer.public_key.assign(public_key.begin(), public_key.end());
  peer.spi_base = kSpiBase;
  for (const UdpSocket& socket : sockets) peer.addresses.push_back(socket.local_address());
  peer.datagram_bytes_max = transport::kDatagramBytesMax;
  peer.entry = {static_cast<uint8_t>(rank)};
  return peer;
}

inline std::shared_ptr<Group> make_group(uint32_t rank, uint32_t size, uint64_t wire_id) {
  auto group = std::make_shared<Group>();
  group->wire_id = wire_id;
  group->name = "group " + std::to_string(wire_id);
  group->rank = rank;
  for (uint32_t i = 0; i < size; ++i) group->ranks.push_back(base::Rank{i});
  return group;
}

// A driver per rank, all of them introduced to each other, and a world group with wire id 1.
class DriverJob {
 public:
  explicit DriverJob(uint32_t size, RankOptions first_rank = {}, DriverOptions options = {},
                     RankOptions others = {})
      : size_(size), wanted_(size) {
    for (uint32_t rank = 0; rank < size; ++rank) {
      std::vector<UdpSocket> sockets;
      auto config = make_config(rank, size, rank == 0 ? first_rank : others, sockets);
      drivers_.push_back(
          Driver::make(std::move(config), std::move(sockets), options,
                       [this, rank](const transport::PeerWanted&) { ++wanted_[rank]; })
              .value());
    }
    std::vector<transport::PeerDescription> peers;
    for (const auto& driver : drivers_) {
      EXPECT_TRUE(driver->run([&](collective::Engine& engine, base::Instant) {
        peers.push_back(describe(engine.endpoint(), driver->port().sockets()));
        engine.endpoint().set_own_entry(peers.back().entry);
      }));
    }
    for (uint32_t rank = 0; rank < size; ++rank) {
      EXPECT_TRUE(driver(rank).run([&](collective::Engine& engine, base::Instant at) {
        for (uint32_t peer = 0; peer < size; ++peer) {
          if (peer != rank) engine.install_peer(peers[peer], at);
        }
      }));
      worlds_.push_back(add_group(rank, 1));
    }
  }

  Driver& driver(uint32_t rank) { return *drivers_[rank]; }
  const std::shared_ptr<Group>& world(uint32_t rank) const { return worlds_[rank]; }
  int wanted(uint32_t rank) const { return wanted_[rank]; }
  void destroy(uint32_t rank) { drivers_[rank].reset(); }
  std::unique_ptr<Driver> release(uint32_t rank) { return std::move(drivers_[rank]); }

  std::shared_ptr<Group> add_group(uint32_t rank, uint64_t wire_id) {
    auto group = make_group(rank, size_, wire_id);
    EXPECT_TRUE(driver(rank).run(
        [&](collective::Engine& engine, base::Instant) { EXPECT_TRUE(engine.add_group(group)); }));
    return group;
  }

  // Submits a call of the world's group.
  std::shared_ptr<Call> start(uint32_t rank, const CallOptions& options = {}) {
    auto call = make_call(world(rank), options);
    EXPECT_TRUE(driver(rank).submit(call->operation));
    return call;
  }
  bool wait(uint32_t rank, const Call& call, base::Duration limit = kPatience) {
    return driver(rank).wait(call.operation, now() + limit);
  }
  // A synchronous all_reduce on every rank, one thread each.
  void all_reduce_everywhere(size_t count = 1) {
    std::vector<std::thread> threads;
    for (uint32_t rank = 0; rank < size_; ++rank) {
      threads.emplace_back([this, rank, count] {
        const auto call = start(rank, {.count = count, .is_synchronous = true});
        EXPECT_TRUE(wait(rank, *call));
        expect_sum(*call);
        EXPECT_EQ(call->callbacks, 1);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

 private:
  uint32_t size_;                                 // ranks
  std::vector<std::atomic<int>> wanted_;          // by rank: calls of its WantedHandler
  std::vector<std::unique_ptr<Driver>> drivers_;  // by rank
  std::vector<std::shared_ptr<Group>> worlds_;    // by rank
};

}  // namespace securefabric::net
