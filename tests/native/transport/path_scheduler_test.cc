#include "transport/path_scheduler.h"

#include <gtest/gtest.h>

#include <array>
#include <utility>

#include "endpoint_pair.h"

namespace securefabric::transport {
namespace {

using base::Duration;
using base::Instant;

Instant at(int64_t micros) {
  return Instant::from_nanos(micros * 1000);
}

class PathSchedulerTest : public testing::Test {
 protected:
  PathSchedulerTest() { post(kEagerMessageBytesMax); }

  void post(size_t bytes) { sends_.post({{}, {}, base::Bytes(bytes_).first(bytes), token_++}); }
  // Active paths with these delays in microseconds.
  void open(const std::vector<int64_t>& delays) {
    for (const int64_t delay : delays) {
      const auto id = base::PathId::from_sockets(0, static_cast<uint8_t>(paths_.size()));
      crypto::PathSealer sealer(EndpointPair::aead(), EndpointPair::secret(1), id, 22);
      paths_.push_back(
          std::make_unique<SendingPath>(id, EndpointPair::address(1, 1), std::move(sealer)));
      paths_.back()->state = PathState::kActive;
      paths_.back()->rtt.on_sample(Duration::micros(delay), Duration());
    }
  }
  // How often each path is picked; what is picked is acknowledged at once.
  std::vector<int> picks(int count, Instant now) {
    std::vector<int> picked(paths_.size());
    for (int i = 0; i < count; ++i) {
      const SendingPath* path = scheduler_.pick(paths_, sends_, random_, now);
      for (size_t p = 0; p < paths_.size(); ++p) picked[p] += path == paths_[p].get() ? 1 : 0;
    }
    return picked;
  }
  size_t used() const {
    return static_cast<size_t>(std::count_if(paths_.begin(), paths_.end(),
                                             [](const auto& path) { return path->is_in_use; }));
  }

  std::vector<std::unique_ptr<SendingPath>> paths_;
  base::Random random_{5};
  PathScheduler scheduler_{false};
  const std::vector<uint8_t> bytes_ = std::vector<uint8_t>(kEagerMessageBytesMax);
  uint64_t token_ = 0;  // of the next message
  SendQueue sends_;     // more than one packet
};

TEST_F(PathSchedulerTest, pick__equal_paths_share) {
  open({100, 100, 100, 100});
  for (const int count : picks(4000, at(0))) EXPECT_NEAR(count, 1000, 150);
}

TEST_F(PathSchedulerTest, pick__the_slowest_is_never_the_better_of_two) {
  open({100, 1000, 100, 100});
  EXPECT_EQ(picks(1000, at(0))[1], 0);
}

TEST_F(PathSchedulerTest, pick__a_slow_path_only_with_enough_to_send) {
  open({100, 100, 5000});
  for (const size_t full : {0, 1}) paths_[full]->congestion.on_sent(kWindowInitial, at(0));
  EXPECT_EQ(scheduler_.pick(paths_, sends_, random_, at(0)), nullptr) << "the others are soon free";
  // They carry two windows in a round trip, and fifty round trips before the slow one delivers.
  for (int i = 1; i < 40; ++i) post(kEagerMessageBytesMax);
  EXPECT_EQ(scheduler_.pick(paths_, sends_, random_, at(0)), nullptr);
  for (int64_t delay_us = 100; delay_us < 900; delay_us += 100) {
    for (int i = 0; i < 100; ++i) {
      for (const size_t fast : {0, 1}) {
        paths_[fast]->rtt.on_sample(Duration::micros(delay_us), Duration());
      }
    }
  }
  EXPECT_EQ(scheduler_.pick(paths_, sends_, random_, at(0)), paths_[2].get());
  for (const size_t full : {0, 1}) paths_[full]->congestion.on_discarded(kWindowInitial);
  sends_.clear();
  post(kEagerMessageBytesMax);
  EXPECT_EQ(picks(100, at(0))[2], 0);
  for (const size_t asked : {0, 1}) paths_[asked]->probe_count = 1;
  EXPECT_EQ(picks(100, at(0))[2], 100) << "nobody counts on a path that is asked";
}

// Whoever holds packets back chooses the delays; the least windows then carry no byte in a ms.
TEST_F(PathSchedulerTest, pick__delays_of_many_seconds) {
  open({20'000'000, 90'000'000});
  for (const auto& path : paths_) path->congestion.on_persistent_loss();
  EXPECT_EQ(scheduler_.pick(paths_, sends_, random_, at(0)), paths_[0].get());
}

TEST_F(PathSchedulerTest, pick__the_emptier_of_two) {
  open({100, 100});
  paths_[0]->congestion.on_sent(kWindowInitial / 2, at(0));
  EXPECT_EQ(picks(100, at(0)), (std::vector<int>{0, 100}));
}

TEST_F(PathSchedulerTest, pick__the_avoided_only_when_no_other_has_room) {
  open({100, 100, 100});
  paths_[0]->avoid(at(0));
  paths_[1]->avoid(at(0));
  EXPECT_EQ(picks(100, at(1)), (std::vector<int>{0, 0, 100}));
  paths_[2]->congestion.on_sent(kWindowInitial, at(1));
  EXPECT_EQ(picks(100, at(1))[2], 0);
  EXPECT_EQ(picks(100, at(500))[2], 0) << "full is full";
}

TEST_F(PathSchedulerTest, pick__nothing_with_room) {
  EXPECT_EQ(scheduler_.pick(paths_, sends_, random_, at(0)), nullptr);
  open({100});
  paths_[0]->congestion.on_sent(kWindowInitial, at(0));
  EXPECT_EQ(scheduler_.pick(paths_, sends_, random_, at(0)), nullptr);
  paths_[0]->state = PathState::kSuspect;
  EXPECT_EQ(scheduler_.pick(paths_, sends_, random_, at(0)), nullptr);
}

TEST_F(PathSchedulerTest, pick__those_that_stand_by_step_in) {
  open({100, 100, 100});
  paths_[1]->is_in_use = paths_[2]->is_in_use = false;
  EXPECT_EQ(picks(10, at(0)), (std::vector<int>{10, 0, 0}));
  paths_[0]->state = PathState::kSuspect;
  EXPECT_EQ(picks(10, at(0))[0], 0);
}

TEST_F(PathSchedulerTest, pick__a_packet_alone_keeps_to_its_path) {
  open({100, 100, 100});
  sends_.clear();
  post(8);
  SendingPath* const kept = scheduler_.pick(paths_, sends_, random_, at(0));
  kept->congestion.on_sent(100, at(0));
  for (int i = 0; i < 100; ++i) {
    ASSERT_EQ(scheduler_.pick(paths_, sends_, random_, at(0)), kept);
  }
  // Not where data is queued, not where congestion was met, not where it takes longer.
  kept->congestion.on_sent(kDatagramBytesJumbo, at(0));
  SendingPath* const second = scheduler_.pick(paths_, sends_, random_, at(0));
  EXPECT_NE(second, kept);
  second->avoid(at(0));
  SendingPath* const third = scheduler_.pick(paths_, sends_, random_, at(1));
  EXPECT_NE(third, second);
  EXPECT_NE(third, kept);
  for (int i = 0; i < 50; ++i) third->rtt.on_sample(Duration::micros(200), Duration());
  EXPECT_NE(scheduler_.pick(paths_, sends_, random_, at(500)), third);
}

TEST_F(PathSchedulerTest, pick__blind_is_round_robin) {
  scheduler_ = PathScheduler(true);
  open({100, 5000, 100});
  EXPECT_EQ(picks(300, at(0)), (std::vector<int>{100, 100, 100}));
  EXPECT_EQ(scheduler_.review(paths_, at(0)), 0u);
}

TEST_F(PathSchedulerTest, review__calm_uses_few_and_the_fast_ones) {
  open({100, 900, 100, 900, 100, 900, 100, 900});
  for (int64_t ms = 0; ms < 900; ms += 10) scheduler_.review(paths_, at(ms * 1000));
  EXPECT_EQ(used(), 8u) << "not before it has been calm for a while";
  for (int64_t ms = 900; ms < 1200; ms += 10) scheduler_.review(paths_, at(ms * 1000));
  EXPECT_EQ(used(), kPathsWhenCalm);
  for (size_t i = 0; i < paths_.size(); ++i) EXPECT_EQ(paths_[i]->is_in_use, i % 2 == 0) << i;
}

TEST_F(PathSchedulerTest, review__a_sender_limited_by_windows_gets_them_back) {
  open({100, 100, 100, 100, 100, 100, 100, 100});
  for (int64_t ms = 0; ms < 1200; ms += 10) scheduler_.review(paths_, at(ms * 1000));
  ASSERT_EQ(used(), kPathsWhenCalm);
  for (const auto& path : paths_) path->congestion.on_sent(kWindowInitial, at(1'200'000));
  for (int64_t ms = 1200; ms < 1300; ms += 10) {
    EXPECT_EQ(scheduler_.pick(paths_, sends_, random_, at(ms * 1000)), nullptr);
    EXPECT_EQ(scheduler_.review(paths_, at(ms * 1000)), 0u);
  }
  EXPECT_EQ(used(), 8u);
}

TEST_F(PathSchedulerTest, review__collisions_ask_for_other_routes) {
  open({100, 100, 100});
  paths_[2]->is_in_use = false;
  paths_[0]->congested_at = at(5'000);
  EXPECT_EQ(scheduler_.review(paths_, at(10'000)), 0u) << "one stands by";
  EXPECT_EQ(used(), 3u);
  paths_[0]->congested_at = paths_[1]->congested_at = at(20'000);
  EXPECT_EQ(scheduler_.review(paths_, at(21'000)), 2u);
}

TEST_F(PathSchedulerTest, review__asks_what_has_brought_no_sample_for_a_while) {
  open({100, 100, 20'000, 20'000, 20'000, 20'000});
  for (const auto& path : paths_) path->measured_at = at(1'000'000);
  paths_[1]->measured_at = at(1'900'000);
  paths_[3]->is_in_use = false;
  paths_[4]->probe_count = 1;
  SentPacket packet;
  packet.is_ack_eliciting = true;
  paths_[5]->sent.on_sent(0, packet);
  const auto asked = [&](int64_t micros) {
    scheduler_.review(paths_, at(micros));
    std::vector<bool> wants;
    for (const auto& path : paths_) wants.push_back(std::exchange(path->wants_ping, false));
    return wants;
  };
  EXPECT_EQ(asked(1'990'000), std::vector<bool>(6));
  // Not what stands by, is asked already, or has an answer on its way.
  EXPECT_EQ(asked(2'000'000), (std::vector<bool>{true, false, true, false, false, false}));
  EXPECT_EQ(picks(100, at(2'001'000))[2], 0);
  for (const size_t path : {0, 2}) {
    paths_[path]->on_sample(Duration::micros(100), Duration(), at(2'001'000));
  }
  EXPECT_GT(picks(100, at(2'002'000))[2], 0) << "the link was repaired";
  EXPECT_EQ(asked(2'890'000), std::vector<bool>(6));
}

TEST_F(PathSchedulerTest, review__congestion_everywhere_takes_no_path_away) {
  open({100, 100, 100, 100});
  for (int64_t ms = 10; ms < 1000; ms += 10) {
    for (const auto& path : paths_) {
      path->congestion.on_delay(Duration::micros(ms == 10 ? 100 : 9000), at(ms * 1000 - 2000),
                                at(ms * 1000));
      path->congestion.on_persistent_loss();
      path->congested_at = at(ms * 1000);
    }
    EXPECT_EQ(scheduler_.review(paths_, at(ms * 1000)), 0u);
  }
  EXPECT_EQ(used(), 4u);
}

TEST_F(PathSchedulerTest, room_at__of_the_first_pause_that_ends) {
  open({100, 200, 100});
  EXPECT_TRUE(scheduler_.room_at(paths_, at(0)).is_never());
  for (const auto& path : paths_) {
    path->mtu.on_probe_acked(kDatagramBytesJumbo, at(0));
    path->congestion.on_persistent_loss();
  }
  paths_[1]->on_sent(kDatagramBytesJumbo, at(0));
  EXPECT_EQ(scheduler_.room_at(paths_, at(0)), at(100)) << "half of a round trip";
  paths_[0]->on_sent(kDatagramBytesJumbo, at(0));
  EXPECT_EQ(scheduler_.room_at(paths_, at(0)), at(50));
  paths_[0]->is_in_use = false;
  EXPECT_EQ(scheduler_.room_at(paths_, at(0)), at(100));
}

}  // namespace
}  // namespace securefabric::transport
