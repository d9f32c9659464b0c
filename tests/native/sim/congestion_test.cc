// What congestion control, credits and the choice of paths achieve: ratios to the ideal and to the
// same engine without them, in virtual time.
#include <gtest/gtest.h>

#include "sim/fleet.h"

namespace securefabric::sim {
namespace {

using base::Duration;
using base::Instant;
using base::Rank;
using collective::OperationKind;

constexpr uint64_t kGigabit = 1'000'000'000;

double seconds_of(Fleet& fleet, const Call& call) {
  const Instant begin = fleet.cluster.now();
  fleet.expect_works(call);
  return (fleet.cluster.now() - begin).seconds();
}

double seconds_for(uint64_t bytes, uint64_t rate_bits_per_second) {
  return 8 * static_cast<double>(bytes) / static_cast<double>(rate_bits_per_second);
}

ClusterOptions on_slow_links(uint64_t seed, uint64_t rate = kGigabit) {
  ClusterOptions options = cluster_of(2, seed);
  options.link.rate_bits_per_second = rate;
  options.link.queue_bytes_max = 1 << 20;
  return options;
}

// --- Incast ---

// All send to rank 0 at once, through its one port.
double incast_ratio(uint32_t senders, uint64_t elements, ClusterOptions options) {
  options.ranks = senders + 1;
  Fleet fleet(options);
  fleet.expect_works(call_of(OperationKind::kGather, 16));
  const double took = seconds_of(fleet, call_of(OperationKind::kGather, elements));
  EXPECT_EQ(fleet.cluster.traffic().probe_timeouts, 0u);
  return took / seconds_for(senders * elements * 4, 10 * kGigabit);
}

ClusterOptions one_port() {
  ClusterOptions options = cluster_of(2);
  options.sockets_per_rank = 3;
  options.paths_per_peer = 8;
  options.network.receiver_port.rate_bits_per_second = 10 * kGigabit;
  options.network.receiver_port.queue_bytes_max = 4 << 20;
  return options;
}

TEST(Congestion, incast_8_to_1__within_half_of_the_ideal) {
  const double ratio = incast_ratio(8, 500'000, one_port());
  RecordProperty("ratio", std::to_string(ratio));
  EXPECT_LE(ratio, 1.5);
}

TEST(Congestion, incast_48_to_1__within_half_of_the_ideal) {
  const double ratio = incast_ratio(48, 125'000, one_port());
  RecordProperty("ratio", std::to_string(ratio));
  EXPECT_LE(ratio, 1.5);
}

// The network is fast, the receiver is not: its sockets' buffers fill.
TEST(Congestion, incast_48_to_1__credits_keep_the_socket_buffers_from_overflowing) {
  ClusterOptions options = cluster_of(49);
  options.sockets_per_rank = 3;
  options.paths_per_peer = 8;
  options.host.socket_buffer_bytes = 2 << 20;
  options.host.byte_cost_ns = 1;
  options.receive_budget_bytes = 2 << 20;
  Fleet fleet(options);
  fleet.expect_works(call_of(OperationKind::kGather, 16));
  fleet.expect_works(call_of(OperationKind::kGather, 125'000));
  EXPECT_EQ(fleet.cluster.traffic().packets_lost, 0u);
  EXPECT_EQ(fleet.cluster.traffic().probe_timeouts, 0u);
}

// --- One link for several ---

TEST(Congestion, two_senders_on_one_link__share_it_fairly) {
  for (const int64_t head_start_ms : {0, 30}) {
    ClusterOptions options = cluster_of(3);
    options.network.receiver_port.rate_bits_per_second = kGigabit;
    options.network.receiver_port.queue_bytes_max = 1 << 20;
    options.receive_budget_bytes = 64 << 20;  // the link is to be what limits them
    Fleet fleet(options);
    fleet.expect_works(call_of(OperationKind::kGather, 16));
    CallRun& run = fleet.make_run(call_of(OperationKind::kGather, 5'000'000));
    Operations operations;
    operations.push_back(fleet.start(run, 0));
    operations.push_back(fleet.start(run, 1));
    fleet.cluster.run_for(Duration::millis(head_start_ms));
    operations.push_back(fleet.start(run, 2));
    const auto sent = [&](uint32_t rank) {
      return fleet.cluster.engine(rank).endpoint().traffic().message_bytes_sent;
    };
    fleet.cluster.run_for(Duration::millis(40));  // to find their shares
    const uint64_t before[] = {sent(1), sent(2)};
    fleet.cluster.run_for(Duration::millis(80));
    const auto first = static_cast<double>(sent(1) - before[0]);
    const auto second = static_cast<double>(sent(2) - before[1]);
    EXPECT_GT(first / second, 0.5) << head_start_ms;
    EXPECT_LT(first / second, 2.0) << head_start_ms;
    EXPECT_GT((first + second) / 0.08 * 8, 0.8e9) << "and fill it";
    EXPECT_TRUE(fleet.run_until_done(operations, Duration::seconds(5)));
  }
}

TEST(Congestion, a_deep_queue_stays_short) {
  ClusterOptions options = on_slow_links(1);
  options.paths_per_peer = options.sockets_per_rank = 1;
  options.link.queue_bytes_max = 16 << 20;
  Fleet fleet(options);
  fleet.expect_works(all_reduce_of(1'000));
  const Operations operations = fleet.start_all(all_reduce_of(8'000'000));
  fleet.cluster.run_for(Duration::millis(30));
  uint64_t longest = 0;
  for (int i = 0; i < 200; ++i) {
    fleet.cluster.run_for(Duration::micros(100));
    const auto& link = fleet.cluster.link({Rank{0}, Rank{1}, 0, 0});
    longest = std::max(longest, link.queued_bytes(fleet.cluster.now()));
  }
  // The target is half a millisecond: 62,500 bytes. A window that reacts to loss alone fills 2 MB.
  EXPECT_LE(longest, 4 * 62'500u);
  EXPECT_TRUE(fleet.run_until_done(operations, Duration::seconds(5)));
}

TEST(Congestion, marks_shorten_the_queue_without_loss) {
  ClusterOptions options = on_slow_links(1);
  options.link.mark_above_bytes = 40'000;
  options.link.queue_bytes_max = 600'000;
  Fleet fleet(options);
  const double took = seconds_of(fleet, all_reduce_of(4'000'000));
  EXPECT_GT(fleet.cluster.traffic().ce_received, 0u);
  EXPECT_EQ(fleet.cluster.traffic().packets_lost, 0u);
  EXPECT_LE(took, 1.5 * seconds_for(16'000'000, 4 * kGigabit));
}

// --- Loss ---

TEST(Congestion, goodput_at_loss__0_1_and_1_percent) {
  const auto took = [](double loss, uint64_t seed) {
    ClusterOptions options = on_slow_links(seed);
    options.link.loss = loss;
    Fleet fleet(options);
    fleet.expect_works(all_reduce_of(1'000));
    const double seconds = seconds_of(fleet, all_reduce_of(8'000'000));
    if (loss == 0) {
      EXPECT_EQ(fleet.cluster.traffic().packets_lost, 0u);
      EXPECT_EQ(fleet.cluster.traffic().fragments_resent, 0u);
    }
    EXPECT_EQ(fleet.cluster.traffic().spurious_losses, 0u);
    return seconds;
  };
  const double without = took(0, 1);
  const double with_few = took(0.001, 1);
  const double with_many = took(0.01, 1);
  RecordProperty("goodput_0.1", std::to_string(without / with_few));
  RecordProperty("goodput_1", std::to_string(without / with_many));
  EXPECT_GE(without / with_few, 0.9);
  EXPECT_GE(without / with_many, 0.6);
}

// --- Choice of paths ---

// Eight paths over four links, as the hash throws them: some links carry three, others none.
TEST(Congestion, under_collisions__measured_choice_beats_blind_spraying) {
  double blind = 0;
  double measured = 0;
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    for (const bool is_blind : {true, false}) {
      ClusterOptions options = on_slow_links(seed);
      options.network.parallel_links = 4;
      options.sockets_per_rank = 4;
      options.paths_per_peer = is_blind ? 8 : 16;
      options.sprays_blind = is_blind;
      options.heeds_delay = !is_blind;
      Fleet fleet(options);
      fleet.expect_works(all_reduce_of(1'000));
      (is_blind ? blind : measured) += seconds_of(fleet, all_reduce_of(4'000'000));
    }
  }
  RecordProperty("ratio", std::to_string(measured / blind));
  EXPECT_LT(measured, blind);
}

TEST(Congestion, one_slow_path__measured_choice_beats_blind_spraying) {
  double took[2] = {0, 0};
  for (const bool is_blind : {true, false}) {
    ClusterOptions options = on_slow_links(3);
    options.sprays_blind = is_blind;
    Fleet fleet(options);
    for (const auto& [from, to] : {std::pair{0u, 1u}, std::pair{1u, 0u}}) {
      fleet.cluster.link({Rank{from}, Rank{to}, 0, 0}).options().rate_bits_per_second =
          kGigabit / 20;
    }
    fleet.expect_works(all_reduce_of(1'000));
    for (int i = 0; i < 20; ++i) took[is_blind] += seconds_of(fleet, all_reduce_of(100'000));
  }
  RecordProperty("ratio", std::to_string(took[0] / took[1]));
  EXPECT_LT(took[0], 0.9 * took[1]);
}

// Sixteen paths to a link whose queue has room for thirty packets: each has less than one in
// flight. With two at least, a third of all bytes was sent twice.
TEST(Congestion, many_paths_over_few_links__share_their_queues) {
  ClusterOptions options = on_slow_links(1, kGigabit / 5);
  options.network.parallel_links = 4;
  options.link.queue_bytes_max = 256 * 1024;
  options.sockets_per_rank = 8;
  options.paths_per_peer = 64;
  Fleet fleet(options);
  fleet.expect_works(all_reduce_of(1'000));
  const double took = seconds_of(fleet, all_reduce_of(8'000'000));
  RecordProperty("ratio", std::to_string(took / seconds_for(64'000'000, 8 * kGigabit / 5)));
  EXPECT_LE(took, 1.25 * seconds_for(64'000'000, 8 * kGigabit / 5));
  // Of 7,000, when the paths are opened.
  EXPECT_LE(fleet.cluster.traffic().packets_lost, 70u);
}

// --- Failure ---

TEST(Congestion, a_path_is_cut__its_data_moves_within_milliseconds) {
  ClusterOptions options = on_slow_links(5);
  Fleet fleet(options);
  fleet.expect_works(all_reduce_of(1'000));
  const Operations operations = fleet.start_all(all_reduce_of(20'000'000));
  fleet.cluster.run_for(Duration::millis(20));
  const Route route{Rank{0}, Rank{1}, 0, 1};
  const auto traffic = [&] { return fleet.cluster.engine(0).endpoint().traffic(); };
  const uint64_t resent_before = traffic().fragments_resent;
  fleet.cluster.set_blackhole(route, true);
  const Instant cut_at = fleet.cluster.now();
  ASSERT_TRUE(fleet.cluster.run_until([&] { return traffic().fragments_resent > resent_before; },
                                      cut_at + Duration::millis(5)));
  ASSERT_TRUE(fleet.cluster.run_until([&] { return traffic().paths_suspected > 0; },
                                      cut_at + Duration::millis(20)));
  fleet.cluster.run_for(Duration::seconds(4));
  fleet.cluster.set_blackhole(route, false);
  const Instant repaired_at = fleet.cluster.now();
  const auto is_back = [&] {
    for (const auto& [peer, paths] : fleet.cluster.engine(0).endpoint().paths()) {
      for (const auto& path : paths) {
        if (path.state == transport::PathState::kSuspect) return false;
      }
    }
    return true;
  };
  EXPECT_TRUE(fleet.cluster.run_until(is_back, repaired_at + Duration::seconds(1)));
  EXPECT_TRUE(fleet.run_until_done(operations, Duration::seconds(5)));
}

}  // namespace
}  // namespace securefabric::sim
