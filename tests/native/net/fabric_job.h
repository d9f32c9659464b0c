// Fabrics of one process that find each other on a board in memory.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "net/fabric.h"
#include "net/job_fixture.h"

namespace securefabric::net {

inline constexpr crypto::Suite kSuite = crypto::Suite::kAes256Gcm;

inline crypto::SecretBuffer make_job_secret() {
  auto random = random_bytes(32, 11);
  return crypto::SecretBuffer::copy_and_wipe(random);
}

// Where the ranks of a test publish their entries, in place of the store and its verification.
class TestBoard {
 public:
  using Entry = std::optional<Fabric::Peer>;

  void publish(Fabric& fabric) {
    Fabric::Peer engines;
    for (const EngineEntry& engine : fabric.engine_entries()) {
      transport::PeerDescription& peer = engines.emplace_back();
      peer.rank = fabric.rank();
      peer.boot_id = fabric.boot_id();
      peer.public_key.assign(engine.public_key.begin(), engine.public_key.end());
      peer.spi_base = engine.spi_base;
      peer.addresses = engine.addresses;
      peer.datagram_bytes_max = fabric.datagram_bytes_max();
      peer.entry = {static_cast<uint8_t>(fabric.rank().value)};
    }
    EXPECT_TRUE(fabric.set_entry(engines.front().entry));
    const std::lock_guard<std::mutex> lock(mutex_);
    entries_[fabric.rank()] = engines;
  }
  base::Result<Entry> look_up(const std::string& board, base::Rank rank) {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++look_ups_[board];
    const auto at = entries_.find(rank);
    return at == entries_.end() ? Entry() : Entry(at->second);
  }
  int look_ups(const std::string& board) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return look_ups_[board];
  }

 private:
  std::mutex mutex_;
  std::map<base::Rank, Fabric::Peer> entries_;  // guarded by mutex_
  std::map<std::string, int> look_ups_;         // by group key; guarded by mutex_
};

inline FabricConfig config_of(uint32_t rank, uint32_t size, size_t engines = 1) {
  FabricConfig config;
  config.engines = engines;
  config.rank = base::Rank{rank};
  config.world_size = size;
  config.local_world_size = size;
  config.addresses = {"127.0.0.1"};
  return config;
}

class FabricJob {
 public:
  explicit FabricJob(uint32_t size, size_t engines = 1) : size_(size), engines_(engines) {}

  // A rank that can find the others, but that they cannot find.
  void make(uint32_t rank, Fabric::Resolve resolve = {}) {
    if (!resolve) {
      resolve = [this](const std::string& key, base::Rank peer, bool) {
        return board.look_up(key, peer);
      };
    }
    fabrics_[rank] =
        Fabric::make(config_of(rank, size_, engines_), kSuite, make_job_secret(), resolve).value();
  }
  void join(uint32_t rank, bool eager_connect = false) {
    groups_[rank] = add_group(rank, "world", eager_connect);
  }
  // All ranks, published and in the world's group.
  void make_all(bool eager_connect = false) {
    for (uint32_t rank = 0; rank < size_; ++rank) {
      make(rank);
      board.publish(*fabrics_[rank]);
    }
    for (uint32_t rank = 0; rank < size_; ++rank) join(rank, eager_connect);
  }
  Fabric::Groups add_group(uint32_t rank, const std::string& key, bool eager_connect = false) {
    std::vector<base::Rank> ranks;
    for (uint32_t i = 0; i < size_; ++i) ranks.push_back(base::Rank{i});
    return fabrics_[rank]->add_group({key, key, key, rank, ranks}, eager_connect).value();
  }

  std::shared_ptr<Fabric>& fabric(uint32_t rank) { return fabrics_[rank]; }
  const Fabric::Groups& groups(uint32_t rank) { return groups_[rank]; }
  const std::shared_ptr<Group>& group(uint32_t rank, size_t engine = 0) {
    return groups_[rank][engine];
  }
  std::shared_ptr<Call> start(uint32_t rank, const CallOptions& options = {}, size_t engine = 0) {
    auto call = make_call(group(rank, engine), options);
    EXPECT_TRUE(fabrics_[rank]->driver(engine).submit(call->operation));
    return call;
  }
  bool wait(uint32_t rank, const Call& call, base::Duration limit = kPatience) {
    Driver& driver = fabrics_[rank]->driver(call.operation->group().engine);
    return driver.wait(call.operation, now() + limit);
  }
  void expect_works(size_t count = 1, size_t engine = 0) {
    std::vector<std::shared_ptr<Call>> calls;
    for (uint32_t rank = 0; rank < size_; ++rank) {
      calls.push_back(start(rank, {.count = count}, engine));
    }
    for (uint32_t rank = 0; rank < size_; ++rank) {
      EXPECT_TRUE(wait(rank, *calls[rank]));
      expect_sum(*calls[rank]);
    }
  }

  TestBoard board;

 private:
  uint32_t size_;                                        // ranks
  size_t engines_;                                       // of each
  std::map<uint32_t, Fabric::Groups> groups_;            // the world's group, by rank
  std::map<uint32_t, std::shared_ptr<Fabric>> fabrics_;  // by rank
};

}  // namespace securefabric::net
