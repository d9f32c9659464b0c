// send and recv: order, tags, any source, messages that nobody receives.
#include <gtest/gtest.h>

#include <algorithm>

#include "sim/fleet.h"

namespace securefabric::sim {
namespace {

using base::Duration;
using base::ErrorCode;
using collective::kAnySource;
using Bytes = std::vector<uint8_t>;

Bytes random_bytes(size_t size, uint64_t seed) {
  Bytes bytes(size);
  base::Random(seed).fill(bytes);
  return bytes;
}

// Buffers whose addresses stay, and the operations on them.
class Mail {
 public:
  explicit Mail(Fleet& fleet) : fleet_(fleet) {}

  std::shared_ptr<collective::Operation> send(uint32_t from, uint32_t to, uint32_t tag,
                                              Bytes bytes) {
    Bytes& buffer = buffers_.emplace_back(std::move(bytes));
    fleet_.cluster.audit().add_canary(buffer);
    return start(from, make_send(fleet_.cluster.world(from), to, tag, buffer));
  }
  std::shared_ptr<collective::Operation> receive(uint32_t at, uint32_t from, uint32_t tag,
                                                 size_t size) {
    Bytes& buffer = buffers_.emplace_back(size);
    return start(at, make_receive(fleet_.cluster.world(at), from, tag, buffer));
  }
  static Bytes content(const collective::Operation& operation) {
    return base::to_vector(operation.request().buffers.at(0));
  }

 private:
  std::shared_ptr<collective::Operation> start(uint32_t rank,
                                               std::shared_ptr<collective::Operation> operation) {
    fleet_.cluster.start(rank, operation);
    return operation;
  }
  Fleet& fleet_;
  std::deque<Bytes> buffers_;
};

TEST(Messages, arrive_in_order_of_sending__any_size_any_time) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    ClusterOptions options = cluster_of(2, seed);
    options.link = stormy_link();
    Fleet fleet(options);
    Mail mail(fleet);
    const size_t copied = transport::kCopiedMessageBytesMax;
    const size_t eager = transport::kEagerMessageBytesMax;
    const size_t sizes[] = {0,     1,         100,     copied, copied + 1, eager,
                            3'000, eager + 1, 300'000, 7,      0,          50'000};
    Operations sends;
    Operations receives;
    const bool receive_first = seed % 2 == 0;
    const auto receive_all = [&] {
      for (const size_t size : sizes) receives.push_back(mail.receive(1, 0, 5, size));
    };
    if (receive_first) receive_all();
    fleet.cluster.run_for(Duration::millis(static_cast<int64_t>(seed)));
    for (size_t i = 0; i < std::size(sizes); ++i) {
      sends.push_back(mail.send(0, 1, 5, random_bytes(sizes[i], seed * 100 + i)));
    }
    fleet.cluster.run_for(Duration::millis(static_cast<int64_t>(seed)));
    if (!receive_first) receive_all();
    ASSERT_TRUE(fleet.run_until_done(receives, Duration::seconds(10))) << seed;
    ASSERT_TRUE(fleet.run_until_done(sends, Duration::seconds(10))) << seed;
    for (size_t i = 0; i < std::size(sizes); ++i) {
      ASSERT_FALSE(receives[i]->error) << receives[i]->error->message;
      EXPECT_EQ(Mail::content(*receives[i]), random_bytes(sizes[i], seed * 100 + i)) << seed;
    }
  }
}

TEST(Messages, tags_do_not_wait_for_one_another) {
  Fleet fleet(cluster_of(2));
  Mail mail(fleet);
  Operations sends;
  for (uint32_t tag = 0; tag < 10; ++tag) {
    sends.push_back(mail.send(0, 1, tag, random_bytes(50'000, tag)));
  }
  for (uint32_t tag = 10; tag-- > 0;) {
    const auto receive = mail.receive(1, 0, tag, 50'000);
    ASSERT_TRUE(fleet.run_until_done({receive}, Duration::seconds(1)));
    EXPECT_EQ(Mail::content(*receive), random_bytes(50'000, tag));
  }
  EXPECT_TRUE(fleet.run_until_done(sends, Duration::seconds(1)));
}

TEST(Messages, groups_do_not_mix) {
  Fleet fleet(cluster_of(2));
  const auto other = fleet.cluster.make_group("other", {1, 0});  // ranks the other way round
  Mail mail(fleet);
  Bytes in_world(10, 1);
  Bytes in_other(10, 2);
  Bytes received_in_world(10);
  Bytes received_in_other(10);
  const auto world_send = make_send(fleet.cluster.world(0), 1, 3, in_world);
  const auto other_send = make_send(other[1], 0, 3, in_other);
  fleet.cluster.start(0, other_send);
  fleet.cluster.start(0, world_send);
  const auto world_receive = make_receive(fleet.cluster.world(1), 0, 3, received_in_world);
  const auto other_receive = make_receive(other[0], 1, 3, received_in_other);
  fleet.cluster.start(1, world_receive);
  fleet.cluster.start(1, other_receive);
  ASSERT_TRUE(fleet.run_until_done({world_receive, other_receive}, Duration::seconds(1)));
  EXPECT_EQ(received_in_world, in_world);
  EXPECT_EQ(received_in_other, in_other);
}

TEST(Messages, any_source_takes_one_from_each_and_says_from_whom) {
  for (const size_t size : {size_t{8}, size_t{100'000}}) {
    for (const bool receive_first : {true, false}) {
      ClusterOptions options = cluster_of(4, size);
      options.link = stormy_link();
      Fleet fleet(options);
      Mail mail(fleet);
      Operations receives;
      const auto receive_all = [&] {
        for (int i = 0; i < 3; ++i) receives.push_back(mail.receive(0, kAnySource, 9, size));
      };
      if (receive_first) receive_all();
      for (uint32_t rank = 1; rank < 4; ++rank) mail.send(rank, 0, 9, random_bytes(size, rank));
      fleet.cluster.run_for(Duration::millis(receive_first ? 0 : 300));
      if (!receive_first) receive_all();
      ASSERT_TRUE(fleet.run_until_done(receives, Duration::seconds(5)));
      std::set<uint32_t> sources;
      for (const auto& receive : receives) {
        ASSERT_FALSE(receive->error) << receive->error->message;
        sources.insert(receive->source_rank);
        EXPECT_EQ(Mail::content(*receive), random_bytes(size, receive->source_rank));
      }
      EXPECT_EQ(sources, (std::set<uint32_t>{1, 2, 3}));
    }
  }
}

TEST(Messages, any_source_and_named_source_are_served_in_the_order_of_posting) {
  Fleet fleet(cluster_of(3));
  Mail mail(fleet);
  const auto from_two = mail.receive(0, 2, 1, 4);
  const auto from_any = mail.receive(0, kAnySource, 1, 4);
  mail.send(1, 0, 1, {1, 1, 1, 1});
  ASSERT_TRUE(fleet.run_until_done({from_any}, Duration::seconds(1)));
  EXPECT_EQ(from_any->source_rank, 1u);
  EXPECT_FALSE(from_two->is_done);
  mail.send(2, 0, 1, {2, 2, 2, 2});
  ASSERT_TRUE(fleet.run_until_done({from_two}, Duration::seconds(1)));
  EXPECT_EQ(Mail::content(*from_two), (Bytes{2, 2, 2, 2}));
}

TEST(Messages, any_source_fails_when_a_rank_it_may_come_from_is_lost) {
  ClusterOptions options = cluster_of(3);
  options.death_timeout = Duration::seconds(2);
  Fleet fleet(options);
  Mail mail(fleet);
  fleet.expect_works(call_of(collective::OperationKind::kAllToAll, 10));
  const auto receive = mail.receive(0, kAnySource, 1, 4);
  fleet.cluster.kill(2);
  EXPECT_TRUE(fleet.run_until_done({receive}, Duration::seconds(4)));
  EXPECT_TRUE(failed_with(*receive, ErrorCode::kPeerLost, "rank 2"));
}

// A rank of the job that is not in the group sends to it all the same: before and after the group
// is known, with any source posted.
TEST(Messages, stranger_to_the_group_is_not_heard) {
  for (const bool is_early : {true, false}) {
    Fleet fleet(cluster_of(3));
    fleet.expect_works(call_of(collective::OperationKind::kAllToAll, 10));
    auto forged = std::make_shared<collective::Group>();
    forged->wire_id = 2;  // the next that make_group takes
    forged->tail.fill(2);
    forged->name = "forged";
    forged->rank = 1;
    forged->ranks = {base::Rank{0}, base::Rank{2}};
    ASSERT_TRUE(fleet.cluster.engine(2).add_group(forged));
    Bytes wrong(8, 66);
    Bytes right(8, 11);
    Bytes received(8);
    const auto send_forged = [&] {
      fleet.cluster.start(2, make_send(forged, 0, 4, wrong));
      CallRun run(call_of(collective::OperationKind::kBarrier, 0), 2);
      fleet.cluster.start(2, run.make_operation(forged, base::Instant::never()));
      fleet.cluster.run_for(Duration::millis(50));
    };
    if (is_early) send_forged();
    const auto group = fleet.cluster.make_group("pair", {0, 1});
    ASSERT_EQ(group[0]->wire_id, forged->wire_id);
    ASSERT_EQ(group[0]->tail, forged->tail);
    const auto receive = make_receive(group[0], kAnySource, 4, received);
    fleet.cluster.start(0, receive);
    if (!is_early) send_forged();
    fleet.cluster.run_for(Duration::millis(50));
    EXPECT_FALSE(receive->is_done);
    fleet.cluster.start(1, make_send(group[1], 0, 4, right));
    ASSERT_TRUE(fleet.run_until_done({receive}, Duration::seconds(1)));
    ASSERT_FALSE(receive->error) << receive->error->message;
    EXPECT_EQ(received, right);
  }
}

// Messages nobody receives use up the eager credit; what comes after still gets through.
TEST(Messages, thousands_that_nobody_receives__collectives_go_on) {
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    ClusterOptions options = cluster_of(2, seed);
    if (seed > 1) options.link = stormy_link();
    Fleet fleet(options);
    Mail mail(fleet);
    constexpr size_t kSize = 4'000;
    constexpr uint32_t kMessages = 2 * transport::kEagerWindow / kSize;
    for (uint32_t i = 0; i < kMessages; ++i) mail.send(0, 1, 77, random_bytes(kSize, i));
    fleet.expect_works(all_reduce_of(10), Duration::seconds(5));
    fleet.expect_works(all_reduce_of(100'000), Duration::seconds(5));
    fleet.expect_works(call_of(collective::OperationKind::kBarrier, 0), Duration::seconds(5));
    Operations receives;
    for (uint32_t i = 0; i < kMessages; ++i) receives.push_back(mail.receive(1, 0, 77, kSize));
    ASSERT_TRUE(fleet.run_until_done(receives, Duration::seconds(20))) << seed;
    for (uint32_t i = 0; i < kMessages; ++i) {
      ASSERT_FALSE(receives[i]->error) << receives[i]->error->message;
      ASSERT_EQ(Mail::content(*receives[i]), random_bytes(kSize, i)) << seed;
    }
    EXPECT_TRUE(fleet.run_until_drained(Duration::seconds(10)));
    // Both ways, the credit is whole again.
    fleet.expect_works(all_reduce_of(1'000), Duration::seconds(5));
  }
}

TEST(Messages, both_ends_exhaust_the_credit_at_once) {
  ClusterOptions options = cluster_of(2);
  options.link = stormy_link();
  Fleet fleet(options);
  Mail mail(fleet);
  constexpr size_t kSize = transport::kCopiedMessageBytesMax;
  constexpr uint32_t kMessages = transport::kEagerWindow / kSize + 50;
  Operations receives;
  for (uint32_t i = 0; i < kMessages; ++i) {
    for (const uint32_t rank : {0u, 1u})
      mail.send(rank, 1 - rank, 1, random_bytes(kSize, i + rank));
  }
  for (int i = 0; i < 30; ++i) fleet.expect_works(all_reduce_of(3'000), Duration::seconds(5));
  for (uint32_t i = 0; i < kMessages; ++i) {
    for (const uint32_t rank : {0u, 1u}) receives.push_back(mail.receive(rank, 1 - rank, 1, kSize));
  }
  ASSERT_TRUE(fleet.run_until_done(receives, Duration::seconds(10)));
  for (uint32_t i = 0; i < receives.size(); ++i) {
    EXPECT_EQ(Mail::content(*receives[i]), random_bytes(kSize, i / 2 + (1 - i % 2)));
  }
  EXPECT_TRUE(fleet.run_until_drained(Duration::seconds(10)));
}

}  // namespace
}  // namespace securefabric::sim
