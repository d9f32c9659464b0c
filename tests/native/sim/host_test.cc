// Socket buffers and the CPU: alone, and in a cluster.
#include "sim/host.h"

#include <gtest/gtest.h>

#include "sim/fleet.h"

namespace securefabric::sim {
namespace {

using base::Duration;
using collective::OperationKind;

Parcel parcel_of(size_t bytes, uint8_t socket) {
  return {
      {base::Rank{1}, base::Rank{0}, 0, socket}, Hop::kArrived, false, std::vector<uint8_t>(bytes)};
}

TEST(Host, admit__each_socket_has_its_own_buffer) {
  HostOptions options;
  options.socket_buffer_bytes = 1'000;
  Host host(options, 2);
  EXPECT_TRUE(host.admit(parcel_of(600, 0)));
  EXPECT_FALSE(host.admit(parcel_of(401, 0)));
  EXPECT_TRUE(host.admit(parcel_of(1'000, 1)));
  EXPECT_TRUE(host.admit(parcel_of(400, 0)));
  EXPECT_EQ(host.take().bytes.size(), 600u);
  EXPECT_EQ(host.take().bytes.size(), 1'000u);
  EXPECT_TRUE(host.admit(parcel_of(600, 0)));
  EXPECT_EQ(host.take().bytes.size(), 400u);
  EXPECT_EQ(host.take().bytes.size(), 600u);
  EXPECT_FALSE(host.has_waiting());
}

TEST(Host, cost__adds_up) {
  HostOptions options;
  EXPECT_FALSE(options.has_costs());
  options.call_cost = Duration::micros(2);
  options.datagram_cost = Duration::nanos(300);
  options.byte_cost_ns = 0.5;
  EXPECT_TRUE(options.has_costs());
  EXPECT_EQ(options.cost(1, 7, 10'000), Duration::nanos(2'000 + 2'100 + 5'000));
}

// Virtual time of one all_reduce of 4 MB on two hosts.
Duration time_of(const HostOptions& host, size_t burst_segments) {
  ClusterOptions options = cluster_of(2);
  options.host = host;
  options.burst_segments_max = burst_segments;
  options.datagram_bytes_max = transport::kDatagramBytesMin;
  Fleet fleet(options);
  fleet.expect_works(all_reduce_of(1'000));
  const base::Instant start = fleet.cluster.now();
  fleet.expect_works(all_reduce_of(1'000'000));
  return fleet.cluster.now() - start;
}

TEST(Host, cluster__cpu_time_bounds_the_goodput_and_batches_save_calls) {
  HostOptions host;
  host.byte_cost_ns = 1;
  const Duration bytes_only = time_of(host, transport::kBurstSegmentsMax);
  // Each rank sends 4 MB and receives 4 MB: a nanosecond per byte, and not much on top.
  EXPECT_GT(bytes_only, Duration::millis(8));
  EXPECT_LT(bytes_only, Duration::millis(14));
  host.call_cost = Duration::micros(4);
  const Duration batched = time_of(host, transport::kBurstSegmentsMax);
  const Duration single = time_of(host, 1);
  EXPECT_GT(single.nanos(), batched.nanos() * 3 / 2);
}

TEST(Host, cluster__overrun_socket_is_only_slow) {
  ClusterOptions options = cluster_of(9);
  options.host.byte_cost_ns = 1;
  options.host.socket_buffer_bytes = 100'000;
  Fleet fleet(options);
  fleet.expect_works(call_of(OperationKind::kGather, 200'000));
  EXPECT_GT(fleet.cluster.socket_drops(), 0u);
}

}  // namespace
}  // namespace securefabric::sim
