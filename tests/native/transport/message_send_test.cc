#include "transport/message_send.h"

#include <gtest/gtest.h>

#include "endpoint_pair.h"

namespace securefabric::transport {
namespace {

using wire::DataFrame;

constexpr size_t kRoom = 8928;  // plaintext of a full datagram
constexpr size_t kLarge = 100'000;

class SendQueueTest : public testing::Test {
 protected:
  // Bytes of large messages must stay where they are.
  base::Bytes keep(size_t size) {
    kept_.push_back(pattern(size, kept_.size() + 1));
    return kept_.back();
  }
  void post(const wire::MessageKey& key, base::Bytes bytes, Token token = 0,
            bool is_passed_on = false) {
    queue_.post({key, signature(), bytes, token, is_passed_on});
  }
  base::Status grant(const wire::MessageKey& key, uint64_t bytes) {
    return queue_.on_grant({key, bytes, next_grant_id_++});
  }
  std::vector<DataFrame> drain(size_t room = kRoom) {
    std::vector<DataFrame> frames;
    while (auto frame = queue_.next(room)) {
      SF_CHECK(frames.size() < 100'000);
      frames.push_back(*frame);
    }
    return frames;
  }
  static SentData sent(const DataFrame& frame) {
    return {frame.message_id, frame.offset, static_cast<uint32_t>(frame.bytes.size())};
  }
  static ByteVector joined(const std::vector<DataFrame>& frames) {
    ByteVector all;
    for (const DataFrame& frame : frames) {
      if (all.size() < frame.end()) all.resize(frame.end());
      std::copy(frame.bytes.begin(), frame.bytes.end(),
                all.begin() + static_cast<ptrdiff_t>(frame.offset));
    }
    return all;
  }

  SendQueue queue_;
  std::deque<ByteVector> kept_;
  uint64_t next_grant_id_ = 0;
};

TEST_F(SendQueueTest, post__small_message_is_eager_and_copied) {
  ByteVector bytes = pattern(100);
  post(collective_key(1), bytes);
  const ByteVector before = bytes;
  std::fill(bytes.begin(), bytes.end(), uint8_t{0});
  const auto frames = drain();
  ASSERT_EQ(frames.size(), 1u);
  EXPECT_TRUE(frames[0].is_eager);
  EXPECT_EQ(frames[0].key, collective_key(1));
  EXPECT_EQ(frames[0].signature, signature());
  EXPECT_EQ(frames[0].message_length, 100u);
  EXPECT_EQ(joined(frames), before);
  EXPECT_FALSE(queue_.is_drained());
  EXPECT_EQ(queue_.on_acked(sent(frames[0])), std::nullopt) << "small messages report nothing";
  EXPECT_TRUE(queue_.is_drained());
}

TEST_F(SendQueueTest, post__empty_message_goes_out_once) {
  post(collective_key(1), {});
  const auto frames = drain();
  ASSERT_EQ(frames.size(), 1u);
  EXPECT_EQ(frames[0].message_length, 0u);
  EXPECT_TRUE(frames[0].signature.has_value());
  EXPECT_FALSE(queue_.has_next());
  queue_.on_lost(sent(frames[0]));
  EXPECT_EQ(drain().size(), 1u);
  queue_.on_acked(sent(frames[0]));
  EXPECT_TRUE(queue_.is_drained());
}

TEST_F(SendQueueTest, post__large_collective_message_waits_silently_for_its_grant) {
  post(collective_key(1), keep(kLarge), 42);
  EXPECT_FALSE(queue_.has_next());
  ASSERT_TRUE(grant(collective_key(1), kLarge).ok());
  const auto frames = drain();
  EXPECT_EQ(joined(frames), kept_[0]);
  for (const DataFrame& frame : frames) {
    EXPECT_FALSE(frame.is_eager);
    EXPECT_EQ(frame.signature.has_value(), frame.offset == 0);
    EXPECT_EQ(frame.offset % kFragmentAlignment, 0u);
    EXPECT_EQ(frame.wants_ack_now, frame.end() == kLarge);
    EXPECT_EQ(frame.bytes.data(), kept_[0].data() + frame.offset) << "not copied";
  }
  for (size_t i = 0; i + 1 < frames.size(); ++i) {
    EXPECT_EQ(queue_.on_acked(sent(frames[i])), std::nullopt);
  }
  EXPECT_EQ(queue_.on_acked(sent(frames.back())), Token{42});
  EXPECT_TRUE(queue_.is_drained());
}

TEST_F(SendQueueTest, post__large_point_to_point_message_is_announced) {
  post(point_to_point_key(1), keep(kLarge), 42);
  const auto frames = drain();
  ASSERT_EQ(frames.size(), 1u);
  EXPECT_TRUE(frames[0].bytes.empty());
  EXPECT_EQ(frames[0].offset, 0u);
  EXPECT_EQ(frames[0].message_length, kLarge);
  EXPECT_TRUE(frames[0].signature.has_value());
  EXPECT_EQ(queue_.on_acked(sent(frames[0])), std::nullopt) << "only the announcement arrived";
  EXPECT_FALSE(queue_.is_drained());
  ASSERT_TRUE(grant(point_to_point_key(1), kLarge).ok());
  EXPECT_EQ(joined(drain()), kept_[0]);
}

TEST_F(SendQueueTest, post__early_grant_was_waiting) {
  ASSERT_TRUE(grant(collective_key(1), kLarge).ok());
  EXPECT_FALSE(queue_.has_next());
  post(collective_key(1), keep(kLarge), 42);
  EXPECT_EQ(joined(drain()), kept_[0]);
  // The grant was for one message only.
  post(collective_key(1), keep(kLarge), 43);
  EXPECT_FALSE(queue_.has_next());
}

TEST_F(SendQueueTest, post__without_credit_a_small_message_asks) {
  const ByteVector bytes = pattern(kEagerMessageBytesMax);
  const size_t fitting = kEagerWindow / eager_charge(bytes.size());
  for (size_t i = 0; i <= fitting; ++i) post(collective_key(i), bytes);
  const auto frames = drain();
  ASSERT_TRUE(frames.back().bytes.empty()) << "a request";
  EXPECT_FALSE(frames.back().is_eager);
  EXPECT_EQ(frames.back().key, collective_key(fitting));
  ASSERT_TRUE(grant(collective_key(fitting), bytes.size()).ok());
  EXPECT_EQ(joined(drain()), bytes);
}

// Everything that a receiver takes unasked is out: the rest waits, in order and without a copy.
class ExhaustedSendQueueTest : public SendQueueTest {
 protected:
  void SetUp() override {
    uint64_t i = 0;
    for (; i < kEagerWindow / eager_charge(0); ++i) {
      ASSERT_TRUE(queue_.post({point_to_point_key(i), signature(), {}, i, false}));
    }
    for (; i < kEagerWindow / eager_charge(0) + kAnnouncedMax; ++i) {
      ASSERT_FALSE(queue_.post({point_to_point_key(i), signature(), {}, i, false}));
    }
    frames_ = drain();
    ASSERT_EQ(frames_.size(), i);
    ASSERT_TRUE(frames_.back().is_announced);
    first_waiting_ = i;
    for (; i < first_waiting_ + 3; ++i) {
      ASSERT_FALSE(queue_.post({point_to_point_key(i), signature(), keep(100), i, false}));
    }
    ASSERT_FALSE(queue_.has_next());
  }
  uint64_t first_waiting_ = 0;
  std::vector<DataFrame> frames_;
};

TEST_F(ExhaustedSendQueueTest, on_credit__lets_go_in_order) {
  queue_.on_credit(0, kAnnouncedMax + 1);
  auto frames = drain();
  ASSERT_EQ(frames.size(), 1u);
  EXPECT_EQ(frames[0].key, point_to_point_key(first_waiting_));
  EXPECT_TRUE(frames[0].is_announced);
  EXPECT_TRUE(frames[0].bytes.empty()) << "a request";
  queue_.on_credit(kEagerWindow + eager_charge(100), 0);
  frames = drain();
  ASSERT_EQ(frames.size(), 1u);
  EXPECT_EQ(frames[0].key, point_to_point_key(first_waiting_ + 1));
  EXPECT_TRUE(frames[0].is_eager);
  EXPECT_EQ(queue_.on_acked(sent(frames[0])), first_waiting_ + 1) << "it was not copied";
}

TEST_F(ExhaustedSendQueueTest, on_grant__a_pull_lets_one_go_without_credit) {
  const auto pull = [this](uint64_t i, uint64_t bytes) {
    return queue_.on_grant({point_to_point_key(i), bytes, next_grant_id_++, true});
  };
  ASSERT_TRUE(pull(first_waiting_ + 2, 100).ok());
  const auto frames = drain();
  ASSERT_EQ(frames.size(), 1u);
  EXPECT_FALSE(frames[0].is_eager || frames[0].is_announced);
  EXPECT_EQ(frames[0].bytes.size(), 100u);
  EXPECT_EQ(queue_.on_acked(sent(frames[0])), first_waiting_ + 2);
  // One for what is on its way, is done with, or has not been posted changes nothing.
  for (const uint64_t i : {uint64_t{0}, first_waiting_ + 2, first_waiting_ + 3}) {
    ASSERT_TRUE(pull(i, 100).ok());
  }
  EXPECT_FALSE(queue_.has_next());
  ASSERT_FALSE(queue_.post({point_to_point_key(first_waiting_ + 3), signature(), {}, 9, false}));
  EXPECT_FALSE(queue_.has_next());
}

TEST_F(ExhaustedSendQueueTest, drop_group__leaves_nothing) {
  for (const DataFrame& frame : frames_) queue_.on_acked(sent(frame));
  queue_.withdraw_group(7);
  EXPECT_TRUE(queue_.is_drained());
  queue_.on_credit(2 * kEagerWindow, 2 * kAnnouncedMax);
  EXPECT_FALSE(queue_.has_next());
}

TEST_F(SendQueueTest, on_grant__answers_that_a_pull_has_overtaken_are_not_kept) {
  for (size_t i = 0; i < 2 * kEarlyGrantsMax; ++i) {
    ASSERT_TRUE(grant(point_to_point_key(i), kLarge).ok());
    ASSERT_TRUE(grant(collective_key(i), 100).ok());
  }
}

TEST_F(SendQueueTest, on_credit__only_ever_grows) {
  const ByteVector bytes = pattern(kEagerMessageBytesMax);
  uint64_t charged = 0;
  while (charged + eager_charge(bytes.size()) <= kEagerWindow) {
    post(collective_key(charged), bytes);
    charged += eager_charge(bytes.size());
  }
  drain();
  queue_.on_credit(kEagerWindow + eager_charge(bytes.size()), kAnnouncedMax);
  queue_.on_credit(kEagerWindow, 0);  // overtaken on another path
  post(collective_key(1), bytes);
  EXPECT_TRUE(drain()[0].is_eager);
  post(collective_key(2), bytes);
  EXPECT_FALSE(drain()[0].is_eager);
}

TEST_F(SendQueueTest, on_grant__resent_grant_counts_once) {
  post(collective_key(1), keep(kLarge), 42);
  const wire::GrantFrame frame{collective_key(1), kLarge, 5};
  ASSERT_TRUE(queue_.on_grant(frame).ok());
  for (const DataFrame& fragment : drain()) queue_.on_acked(sent(fragment));
  // The same grant again must not be kept for the next message of that key.
  ASSERT_TRUE(queue_.on_grant(frame).ok());
  post(collective_key(1), keep(kLarge), 43);
  EXPECT_FALSE(queue_.has_next());
}

// The ends disagree about the length; other messages must not wait behind the rest of this one.
TEST_F(SendQueueTest, on_grant__less_than_the_message_blocks_nobody) {
  post(collective_key(1), keep(kLarge), 42);
  post(collective_key(2), keep(kLarge), 43);
  ASSERT_TRUE(grant(collective_key(1), 20'001).ok());
  ASSERT_TRUE(grant(collective_key(2), kLarge).ok());
  const auto frames = drain();
  EXPECT_FALSE(queue_.has_next());
  uint64_t first = 0;
  uint64_t second = 0;
  for (const DataFrame& frame : frames) {
    (frame.key == collective_key(1) ? first : second) += frame.bytes.size();
  }
  EXPECT_EQ(first, 20'000u);
  EXPECT_EQ(second, kLarge);
}

TEST_F(SendQueueTest, on_grant__too_many_of_messages_nobody_posted) {
  for (size_t i = 0; i < kEarlyGrantsMax; ++i) {
    ASSERT_TRUE(grant(collective_key(i), kLarge).ok());
  }
  const base::Status status = grant(collective_key(kEarlyGrantsMax), kLarge);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, base::ErrorCode::kLimit);
}

TEST_F(SendQueueTest, on_grant__ids_with_too_many_holes) {
  base::Status status = base::ok_status();
  for (size_t i = 0; i <= kFinishedRangesMax && status.ok(); ++i) {
    status = queue_.on_grant({collective_key(1), 1, 2 * i});
  }
  EXPECT_FALSE(status.ok());
}

TEST_F(SendQueueTest, next__small_messages_overtake_large_ones) {
  post(collective_key(1), keep(kLarge), 42);
  ASSERT_TRUE(grant(collective_key(1), kLarge).ok());
  EXPECT_EQ(queue_.next(kRoom)->key, collective_key(1));
  post(collective_key(2), pattern(100));
  EXPECT_EQ(queue_.next(kRoom)->key, collective_key(2));
  EXPECT_EQ(queue_.next(kRoom)->key, collective_key(1));
}

TEST_F(SendQueueTest, next__what_is_passed_on_takes_turns_with_what_was_there_from_the_beginning) {
  constexpr uint64_t kAll = 8 * kOthersLead;
  for (const uint64_t id : {1, 2}) {
    post(collective_key(id), keep(kAll), id, id == 2);
    ASSERT_TRUE(grant(collective_key(id), kAll).ok());
  }
  EXPECT_EQ(queue_.sendable_bytes(100 * kAll), 2 * kAll);
  uint64_t passed_on = 0;
  uint64_t others = 0;
  while (const auto frame = queue_.next(kRoom)) {
    (frame->key == collective_key(1) ? others : passed_on) += frame->bytes.size();
    if (others < kOthersLead) {
      EXPECT_EQ(passed_on, 0u);
    } else if (others < kAll) {
      EXPECT_NEAR(static_cast<double>(others - passed_on), kOthersLead, 2.0 * kRoom);
    }
  }
  EXPECT_EQ(others, kAll);
  EXPECT_EQ(passed_on, kAll);
}

TEST_F(SendQueueTest, next__what_is_passed_on_waits_for_nothing_that_is_not_there) {
  post(collective_key(1), keep(kLarge), 1, true);
  post(collective_key(2), keep(kLarge), 2);  // not granted
  ASSERT_TRUE(grant(collective_key(1), kLarge).ok());
  EXPECT_EQ(joined(drain()).size(), kLarge);
  EXPECT_FALSE(queue_.has_next());
}

TEST_F(SendQueueTest, next__what_was_lost_goes_before_what_is_passed_on) {
  constexpr uint64_t kAll = 4 * kOthersLead;
  post(collective_key(1), keep(kAll), 1);
  post(collective_key(2), keep(kAll), 2, true);
  ASSERT_TRUE(grant(collective_key(1), kAll).ok());
  ASSERT_TRUE(grant(collective_key(2), kAll).ok());
  auto lost = queue_.next(kRoom);
  while (queue_.next(kRoom)->key == collective_key(1)) {
  }
  queue_.on_lost(sent(*lost));
  EXPECT_EQ(queue_.next(kRoom)->offset, lost->offset);
  EXPECT_EQ(queue_.next(kRoom)->key, collective_key(2));
}

TEST_F(SendQueueTest, next__too_little_room_is_refused_and_costs_nothing) {
  post(collective_key(1), pattern(100));
  for (size_t room = 0; room < wire::kDataFrameBytes + wire::kSignatureBytes + 16; ++room) {
    EXPECT_FALSE(queue_.next(room).has_value()) << room;
  }
  EXPECT_EQ(queue_.next(wire::kDataFrameBytes + wire::kSignatureBytes + 16)->bytes.size(), 16u);
  EXPECT_EQ(joined(drain()).size(), 100u);
}

TEST_F(SendQueueTest, on_lost__is_sent_again_first_and_only_the_lost) {
  post(collective_key(1), keep(kLarge), 42);
  ASSERT_TRUE(grant(collective_key(1), kLarge).ok());
  const auto first = queue_.next(kRoom);
  const auto second = queue_.next(kRoom);
  queue_.on_lost(sent(*first));
  const auto again = queue_.next(kRoom);
  EXPECT_EQ(again->offset, first->offset);
  EXPECT_EQ(again->bytes.size(), first->bytes.size());
  EXPECT_TRUE(again->signature.has_value());
  EXPECT_EQ(queue_.resent_fragments(), 1u);
  EXPECT_EQ(queue_.resent_bytes(), first->bytes.size());
  EXPECT_EQ(queue_.next(kRoom)->offset, second->end());
}

TEST_F(SendQueueTest, on_lost__is_cut_smaller_where_room_is_short) {
  post(collective_key(1), keep(kLarge), 42);
  ASSERT_TRUE(grant(collective_key(1), kLarge).ok());
  const auto frames = drain();
  queue_.on_lost(sent(frames[1]));
  ByteVector again;
  for (const DataFrame& frame : drain(1000)) {
    EXPECT_LE(frame.bytes.size() + encoded_bytes(frame), 1000u);
    EXPECT_EQ(frame.offset, frames[1].offset + again.size());
    again.insert(again.end(), frame.bytes.begin(), frame.bytes.end());
  }
  EXPECT_EQ(again, base::to_vector(frames[1].bytes));
}

TEST_F(SendQueueTest, on_lost__acked_in_the_meantime_is_not_sent_again) {
  post(collective_key(1), keep(kLarge), 42);
  ASSERT_TRUE(grant(collective_key(1), kLarge).ok());
  const auto frames = drain();
  queue_.on_lost(sent(frames[0]));
  queue_.on_lost(sent(frames[1]));
  queue_.on_acked(sent(frames[0]));
  EXPECT_EQ(drain().front().offset, frames[1].offset);
  queue_.on_acked(sent(frames[2]));
  queue_.on_lost(sent(frames[2]));
  EXPECT_FALSE(queue_.next(kRoom).has_value());
  EXPECT_FALSE(queue_.has_next());
}

TEST_F(SendQueueTest, on_lost__queued_again_and_then_delivered) {
  post(collective_key(1), pattern(100));
  post(collective_key(2), pattern(100));
  const auto frames = drain();
  queue_.on_lost(sent(frames[0]));
  queue_.on_lost(sent(frames[1]));
  queue_.on_acked(sent(frames[0]));  // late
  EXPECT_EQ(drain().size(), 1u);
  queue_.on_acked(sent(frames[1]));
  EXPECT_TRUE(queue_.is_drained());
  queue_.on_lost(sent(frames[1]));  // of a message that is gone
  EXPECT_FALSE(queue_.has_next());
}

TEST_F(SendQueueTest, on_lost__announcement_is_repeated_until_granted) {
  post(point_to_point_key(1), keep(kLarge), 42);
  const auto request = drain();
  queue_.on_lost(sent(request[0]));
  EXPECT_EQ(drain().size(), 1u);
  ASSERT_TRUE(grant(point_to_point_key(1), kLarge).ok());
  drain();
  queue_.on_lost(sent(request[0]));
  EXPECT_TRUE(drain().empty()) << "the peer must have seen one";
}

TEST_F(SendQueueTest, withdraw_group__forgets_bytes_in_every_state) {
  post(point_to_point_key(1), keep(kLarge), 1);  // announced, not granted
  post(collective_key(2), keep(kLarge), 2);      // granted, begun
  ASSERT_TRUE(grant(collective_key(2), kLarge).ok());
  const auto begun = queue_.next(kRoom);
  post(collective_key(3), keep(kLarge), 3);  // waiting
  queue_.withdraw_group(7);
  EXPECT_FALSE(queue_.has_next());
  EXPECT_TRUE(queue_.is_drained());
  EXPECT_EQ(queue_.on_acked(sent(*begun)), std::nullopt);
  queue_.on_lost(sent(*begun));
  EXPECT_TRUE(drain().empty());
}

TEST_F(SendQueueTest, drop_group__gives_the_credit_of_what_never_began_back) {
  const ByteVector bytes = pattern(kEagerMessageBytesMax);
  const size_t fitting = kEagerWindow / eager_charge(bytes.size());
  for (int round = 0; round < 3; ++round) {
    for (size_t i = 0; i < fitting; ++i) post(collective_key(i, 0, /*group=*/9), bytes);
    queue_.drop_group(9);
    EXPECT_TRUE(queue_.is_drained());
  }
  post(collective_key(1), bytes);
  EXPECT_TRUE(queue_.next(kRoom)->is_eager);
}

TEST_F(SendQueueTest, drop_group__keeps_what_the_peer_may_have_begun_to_take) {
  post(collective_key(1), pattern(10'000));
  queue_.next(1000);
  queue_.drop_group(7);
  EXPECT_FALSE(queue_.is_drained());
  EXPECT_EQ(joined(drain()).size(), 10'000u);
}

TEST_F(SendQueueTest, drop_group__leaves_other_groups_and_their_early_grants) {
  ASSERT_TRUE(grant(collective_key(1, 0, 8), kLarge).ok());
  ASSERT_TRUE(grant(collective_key(1, 0, 9), kLarge).ok());
  queue_.drop_group(9);
  post(collective_key(1, 0, 8), keep(kLarge), 1);
  post(collective_key(1, 0, 9), keep(kLarge), 2);
  EXPECT_EQ(queue_.next(kRoom)->key.group, 8u);
  for (const DataFrame& frame : drain()) EXPECT_EQ(frame.key.group, 8u);
}

TEST_F(SendQueueTest, clear__forgets_everything) {
  post(collective_key(1), pattern(10));
  post(point_to_point_key(2), keep(kLarge), 1);
  queue_.clear();
  EXPECT_TRUE(queue_.is_drained());
  EXPECT_FALSE(queue_.has_next());
}

// Whatever is lost and however fragments are cut: every byte gets there, and delivery is reported.
TEST_F(SendQueueTest, every_call__delivers_everything_under_random_loss) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    base::Random random(seed);
    queue_ = SendQueue();
    kept_.clear();
    std::map<uint64_t, BufferSink> sinks;
    std::map<uint64_t, base::RangeSet> arrived;
    std::set<Token> delivered;
    std::deque<SentData> in_flight;
    for (uint64_t i = 0; i < 12; ++i) {
      const size_t size = random.chance(0.5) ? random.below(2000) : random.below(60'000);
      const auto key = random.chance(0.5) ? collective_key(i) : point_to_point_key(i);
      post(key, keep(size), i, random.chance(0.3));
      ASSERT_TRUE(grant(key, size).ok());
    }
    for (int turn = 0; turn < 20'000 && !queue_.is_drained(); ++turn) {
      if (const auto frame = queue_.next(64 + random.below(9000))) {
        in_flight.push_back(sent(*frame));
        const ByteVector& whole = kept_[frame->message_id];
        ASSERT_EQ(frame->bytes.size() == 0 || frame->end() <= whole.size(), true);
        ASSERT_TRUE(std::equal(frame->bytes.begin(), frame->bytes.end(),
                               whole.begin() + static_cast<ptrdiff_t>(frame->offset)));
        arrived[frame->message_id].insert(frame->offset, frame->end());
      }
      if (in_flight.empty() || random.chance(0.4)) continue;
      const SentData data = in_flight.front();
      in_flight.pop_front();
      if (random.chance(0.4)) {
        queue_.on_lost(data);
      } else if (const auto token = queue_.on_acked(data)) {
        ASSERT_TRUE(delivered.insert(*token).second);
      }
    }
    ASSERT_TRUE(queue_.is_drained());
    for (uint64_t i = 0; i < 12; ++i) {
      ASSERT_TRUE(arrived[i].covers(0, kept_[i].size()));
      ASSERT_EQ(delivered.contains(i), kept_[i].size() > kCopiedMessageBytesMax);
    }
  }
}

}  // namespace
}  // namespace securefabric::transport
