// Paths that die and come back while a collective runs over them.
#include <gtest/gtest.h>

#include "sim/fleet.h"

namespace securefabric::sim {
namespace {

using base::Duration;
using base::Rank;
using transport::PathState;

// What rank `from` thinks of its path to `to` over these sockets; one that is avoided is active.
PathState state_of(Fleet& fleet, uint32_t from, uint32_t to, uint8_t from_socket,
                   uint8_t to_socket) {
  for (const auto& [peer, paths] : fleet.cluster.engine(from).endpoint().paths()) {
    if (peer != Rank{to}) continue;
    for (const auto& path : paths) {
      if (path.id != base::PathId::from_sockets(from_socket, to_socket)) continue;
      return path.state == PathState::kAvoided ? PathState::kActive : path.state;
    }
  }
  ADD_FAILURE() << "no such path";
  return PathState::kValidating;
}

ClusterOptions four_slow_paths(uint64_t seed) {
  ClusterOptions options = cluster_of(2, seed);
  options.sockets_per_rank = 2;
  options.paths_per_peer = 4;
  options.link.rate_bits_per_second = 100'000'000;
  options.link.queue_bytes_max = 128 * 1024;  // full after 10 ms
  return options;
}

TEST(Paths, blackholed_path_becomes_suspect_and_returns_when_repaired) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    Fleet fleet(four_slow_paths(seed));
    fleet.expect_works(all_reduce_of(1'000));
    const Route route{Rank{0}, Rank{1}, 0, 1};
    CallRun& run = fleet.make_run(all_reduce_of(5'000'000));
    const Operations operations = fleet.start_all(run);
    fleet.cluster.run_for(Duration::millis(20));
    fleet.cluster.set_blackhole(route, true);
    fleet.cluster.run_for(Duration::millis(200));
    EXPECT_EQ(state_of(fleet, 0, 1, 0, 1), PathState::kSuspect) << seed;
    EXPECT_EQ(state_of(fleet, 0, 1, 0, 0), PathState::kActive) << seed;
    EXPECT_FALSE(operations[0]->is_done) << "too fast to show anything";
    fleet.cluster.set_blackhole(route, false);
    ASSERT_TRUE(fleet.run_until_done(operations, Duration::seconds(5))) << seed;
    fleet.expect_right(run, operations);
    fleet.cluster.run_for(Duration::seconds(2));
    EXPECT_EQ(state_of(fleet, 0, 1, 0, 1), PathState::kActive) << seed;
    EXPECT_EQ(state_of(fleet, 1, 0, 1, 0), PathState::kActive) << seed;
  }
}

// Four links and a job that goes on with messages that three of them could carry as well. What was
// slow was not chosen, so nobody measured it again: for as long as the job had no pause of a
// second, the fourth link carried nothing more.
TEST(Paths, a_link_that_was_slow_carries_its_share_when_repaired) {
  ClusterOptions options = cluster_of(2, 3);
  options.sockets_per_rank = options.paths_per_peer = 4;
  options.link.rate_bits_per_second = 400'000'000;
  options.link.queue_bytes_max = 1'000'000;
  for (const auto& [count, slow_rate] : {std::pair{300'000, 4'000'000}, {30'000, 20'000'000}}) {
    Fleet fleet(options);
    const auto carried = [&] {
      for (const auto& [peer, paths] : fleet.cluster.engine(0).endpoint().paths()) {
        for (const auto& path : paths) {
          if (path.id == base::PathId::from_sockets(3, 3)) return path.message_bytes;
        }
      }
      return uint64_t{0};
    };
    const auto work_for = [&, count = count](Duration duration) {
      const auto end = fleet.cluster.now() + duration;
      const uint64_t before = carried();
      uint64_t calls = 0;
      for (; fleet.cluster.now() < end; ++calls) {
        fleet.expect_works(all_reduce_of(count));
        fleet.cluster.run_for(Duration::millis(4));
      }
      // Each rank sends so many elements per call.
      return static_cast<double>(carried() - before) / static_cast<double>(calls * count * 4);
    };
    const auto set_rate = [&](uint64_t rate) {
      for (const uint32_t from : {0, 1}) {
        const Route route{Rank{from}, Rank{1 - from}, 3, 3};
        fleet.cluster.link(route).options().rate_bits_per_second = rate;
      }
    };
    work_for(Duration::millis(300));
    set_rate(static_cast<uint64_t>(slow_rate));
    work_for(Duration::millis(500));
    EXPECT_LT(work_for(Duration::millis(500)), 0.05) << count << ": the others are faster";
    set_rate(400'000'000);
    work_for(Duration::millis(1'500));
    EXPECT_GT(work_for(Duration::millis(500)), 0.15) << count;
  }
}

TEST(Paths, one_way_blackhole_is_survived) {
  Fleet fleet(four_slow_paths(11));
  fleet.expect_works(all_reduce_of(1'000));
  const Route route{Rank{1}, Rank{0}, 0, 0};
  fleet.cluster.link(route).options().is_blackhole = true;
  fleet.expect_works(all_reduce_of(2'000'000), Duration::seconds(5));
  fleet.cluster.run_for(Duration::seconds(3));
  EXPECT_EQ(state_of(fleet, 1, 0, 0, 0), PathState::kSuspect);
  fleet.expect_works(all_reduce_of(1'000), Duration::millis(20));
}

TEST(Paths, one_path_of_four_never_worked__others_carry_the_job) {
  Fleet fleet(four_slow_paths(12));
  fleet.cluster.set_blackhole({Rank{0}, Rank{1}, 1, 1}, true);
  fleet.expect_works(all_reduce_of(1'000'000), Duration::seconds(5));
  EXPECT_EQ(state_of(fleet, 0, 1, 1, 1), PathState::kValidating);
}

TEST(Paths, every_path_down_for_three_seconds__resumes_within_a_second) {
  for (uint64_t seed = 21; seed <= 25; ++seed) {
    Fleet fleet(four_slow_paths(seed));
    fleet.expect_works(all_reduce_of(1'000));
    CallRun& run = fleet.make_run(all_reduce_of(2'000'000));
    const Operations operations = fleet.start_all(run);
    fleet.cluster.run_for(Duration::millis(20));
    fleet.cluster.set_blackhole_everywhere(true);
    fleet.cluster.run_for(Duration::seconds(3));
    EXPECT_FALSE(operations[0]->is_done);
    fleet.cluster.set_blackhole_everywhere(false);
    EXPECT_TRUE(fleet.run_until_done(operations, Duration::millis(1'500))) << seed;
    fleet.expect_right(run, operations);
    fleet.cluster.run_for(Duration::seconds(2));
    for (uint8_t a = 0; a < 2; ++a) {
      for (uint8_t b = 0; b < 2; ++b) {
        EXPECT_EQ(state_of(fleet, 0, 1, a, b), PathState::kActive) << seed;
      }
    }
  }
}

TEST(Paths, everything_down_while_idle__found_out_and_repaired) {
  Fleet fleet(four_slow_paths(31));
  fleet.expect_works(all_reduce_of(1'000));
  fleet.cluster.set_blackhole_everywhere(true);
  fleet.cluster.run_for(Duration::seconds(5));
  fleet.cluster.set_blackhole_everywhere(false);
  fleet.cluster.run_for(Duration::seconds(2));
  fleet.expect_works(all_reduce_of(100'000), Duration::seconds(1));
}

TEST(Paths, smaller_mtu_than_announced_on_one_path__its_data_moves) {
  Fleet fleet(four_slow_paths(41));
  const Route route{Rank{0}, Rank{1}, 0, 0};
  fleet.cluster.link(route).options().mtu_bytes = 1'400;
  fleet.expect_works(all_reduce_of(1'000'000), Duration::seconds(20));
}

}  // namespace
}  // namespace securefabric::sim
