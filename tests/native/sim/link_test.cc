#include "sim/link.h"

#include <gtest/gtest.h>

namespace securefabric::sim {
namespace {

using base::Duration;
using base::Instant;

const std::vector<uint8_t> kDatagram(1'000, 7);

std::vector<Delivery> send_many(Link& link, int count, Duration interval = Duration::micros(10)) {
  std::vector<Delivery> deliveries;
  for (int i = 0; i < count; ++i) link.send(Instant() + interval * i, kDatagram, deliveries);
  return deliveries;
}

TEST(Link, send__perfect_link_delivers_after_the_latency) {
  Link link(LinkOptions{}, 1);
  const auto deliveries = send_many(link, 1);
  ASSERT_EQ(deliveries.size(), 1u);
  EXPECT_EQ(deliveries[0].at, Instant() + Duration::micros(50));
  EXPECT_EQ(deliveries[0].bytes, kDatagram);
  EXPECT_FALSE(deliveries[0].is_marked_ce);
}

TEST(Link, send__loss_is_as_likely_as_asked) {
  LinkOptions options;
  options.loss = 0.2;
  Link link(options, 2);
  EXPECT_NEAR(static_cast<double>(send_many(link, 10'000).size()), 8'000, 200);
  EXPECT_EQ(link.counters().lost + link.counters().delivered, 10'000u);
}

TEST(Link, send__loss_comes_in_bursts) {
  LinkOptions options;
  options.loss = 0.01;
  options.loss_burst = Duration::micros(95);
  Link link(options, 3);
  send_many(link, 10'000);
  EXPECT_NEAR(static_cast<double>(link.counters().lost), 900, 300);  // ten datagrams each
}

TEST(Link, send__rate_queue_and_marks) {
  LinkOptions options;
  options.rate_bits_per_second = 8'000'000;  // a datagram per millisecond
  options.queue_bytes_max = 5'000;
  options.mark_above_bytes = 3'000;
  Link link(options, 4);
  const auto deliveries = send_many(link, 10, Duration());
  ASSERT_EQ(deliveries.size(), 5u);
  EXPECT_EQ(link.counters().queue_dropped, 5u);
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(deliveries[i].at, Instant() + Duration::millis(i + 1) + options.latency);
    EXPECT_EQ(deliveries[i].is_marked_ce, i >= 3);
  }
}

TEST(Link, send__jitter_keeps_order_and_reordering_does_not) {
  LinkOptions options;
  options.jitter = Duration::millis(1);
  Link steady(options, 5);
  auto deliveries = send_many(steady, 1'000);
  const auto earlier = [](const Delivery& a, const Delivery& b) { return a.at < b.at; };
  EXPECT_TRUE(std::is_sorted(deliveries.begin(), deliveries.end(), earlier));
  options.reorder = 0.1;
  Link unsteady(options, 5);
  deliveries = send_many(unsteady, 1'000);
  EXPECT_FALSE(std::is_sorted(deliveries.begin(), deliveries.end(), earlier));
  EXPECT_NEAR(static_cast<double>(unsteady.counters().reordered), 100, 40);
}

TEST(Link, send__duplicates_are_whole_and_later) {
  LinkOptions options;
  options.duplicate = 1;
  Link link(options, 6);
  const auto deliveries = send_many(link, 1);
  ASSERT_EQ(deliveries.size(), 2u);
  EXPECT_EQ(deliveries[0].bytes, deliveries[1].bytes);
  EXPECT_GT(deliveries[1].at, deliveries[0].at);
}

TEST(Link, send__losses_come_in_bursts_of_gilbert_and_elliott) {
  LinkOptions options;
  options.bad_begin = 0.01;
  options.bad_end = 0.2;  // five datagrams
  options.bad_loss = 0.5;
  Link link(options, 3);
  send_many(link, 100'000);
  // Bad for 0.01 / (0.01 + 0.2) of the time, and half of that is lost.
  EXPECT_NEAR(static_cast<double>(link.counters().lost), 100'000 * 0.01 / 0.21 / 2, 250);
}

TEST(Link, send__damage_changes_the_bytes) {
  LinkOptions options;
  options.corrupt = 1;
  Link flips(options, 7);
  for (const Delivery& delivery : send_many(flips, 1'000)) {
    EXPECT_EQ(delivery.bytes.size(), kDatagram.size());
    EXPECT_NE(delivery.bytes, kDatagram);
  }
  options.corrupt = 0;
  options.truncate = 0.5;
  Link cuts(options, 7);
  int cut = 0;
  for (const Delivery& delivery : send_many(cuts, 1'000)) {
    cut += delivery.bytes.size() < kDatagram.size() ? 1 : 0;
  }
  EXPECT_NEAR(cut, 500, 60);
  EXPECT_EQ(cuts.counters().truncated, static_cast<uint64_t>(cut));
}

TEST(Link, queued_bytes__is_what_has_not_left) {
  LinkOptions options;
  options.rate_bits_per_second = 8'000'000;  // a datagram per millisecond
  Link link(options, 4);
  send_many(link, 4, Duration());
  EXPECT_EQ(link.queued_bytes(Instant()), 4'000u);
  EXPECT_EQ(link.queued_bytes(Instant() + Duration::micros(2'500)), 1'500u);
  EXPECT_EQ(link.queued_bytes(Instant() + Duration::millis(5)), 0u);
}

TEST(Link, send__blackhole_and_mtu_swallow) {
  LinkOptions options;
  options.mtu_bytes = 999;
  Link link(options, 8);
  EXPECT_TRUE(send_many(link, 1).empty());
  EXPECT_EQ(link.counters().mtu_dropped, 1u);
  link.options().mtu_bytes = 1'000;
  EXPECT_EQ(send_many(link, 1).size(), 1u);
  link.options().is_blackhole = true;
  EXPECT_TRUE(send_many(link, 1).empty());
  EXPECT_EQ(link.counters().blackholed, 1u);
}

TEST(Link, send__same_seed_same_fate) {
  LinkOptions options;
  options.loss = options.reorder = options.duplicate = options.corrupt = 0.3;
  options.jitter = Duration::micros(100);
  Link first(options, 9);
  Link again(options, 9);
  const auto a = send_many(first, 500);
  const auto b = send_many(again, 500);
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].at, b[i].at);
    EXPECT_EQ(a[i].bytes, b[i].bytes);
  }
}

}  // namespace
}  // namespace securefabric::sim
