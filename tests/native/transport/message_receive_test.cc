#include "transport/message_receive.h"

#include <gtest/gtest.h>

#include "endpoint_pair.h"

namespace securefabric::transport {
namespace {

using wire::DataFrame;

constexpr base::Rank kPeer{3};
constexpr size_t kLarge = 80'000;

class InboundMessagesTest : public testing::Test {
 protected:
  // Fragment [begin, end) of a message with this content.
  static DataFrame fragment(uint64_t id, const wire::MessageKey& key, base::Bytes whole,
                            uint64_t begin, uint64_t end) {
    DataFrame frame;
    frame.key = key;
    frame.message_id = id;
    frame.message_length = whole.size();
    frame.offset = begin;
    frame.bytes = whole.subspan(begin, end - begin);
    frame.is_eager = whole.size() <= kEagerMessageBytesMax;
    if (begin == 0) frame.signature = signature();
    return frame;
  }
  static DataFrame request(uint64_t id, const wire::MessageKey& key, uint64_t length) {
    DataFrame frame;
    frame.key = key;
    frame.message_id = id;
    frame.message_length = length;
    frame.signature = signature();
    frame.is_announced = true;
    return frame;
  }

  PostedReceive receive(Token token, size_t length) {
    const auto sink = sinks_.emplace(token, std::make_unique<BufferSink>(length)).first;
    return {token, sink->second.get(), length, signature()};
  }
  void post(const wire::MessageKey& key, Token token, size_t length) {
    matcher_.post(kPeer, key, receive(token, length));
  }
  base::Status arrive(const DataFrame& frame) {
    effects_ = {};
    return messages_.on_data(frame, effects_);
  }
  void attach(uint64_t id, const PostedReceive& posted) {
    effects_ = {};
    messages_.attach(id, posted, effects_);
  }
  std::vector<Token> completed() const {
    std::vector<Token> tokens;
    for (const Event& event : effects_.events) {
      if (const auto* one = std::get_if<ReceiveCompleted>(&event)) tokens.push_back(one->token);
    }
    return tokens;
  }
  const MessageMismatch* mismatch() const {
    for (const Event& event : effects_.events) {
      if (const auto* one = std::get_if<MessageMismatch>(&event)) return one;
    }
    return nullptr;
  }
  using Tokens = std::vector<Token>;

  TrafficCounters counters_;
  TestMatcher matcher_;
  InboundMessages messages_{kPeer, matcher_, counters_};
  InboundMessages::Effects effects_;
  std::map<Token, std::unique_ptr<BufferSink>> sinks_;
};

TEST_F(InboundMessagesTest, on_data__places_in_any_order_and_completes_once) {
  const ByteVector whole = pattern(kLarge);
  post(collective_key(1), 5, kLarge);
  ASSERT_TRUE(arrive(fragment(0, collective_key(1), whole, 32'000, kLarge)).ok());
  ASSERT_TRUE(arrive(fragment(0, collective_key(1), whole, 16'000, 32'000)).ok());
  EXPECT_TRUE(completed().empty());
  ASSERT_TRUE(arrive(fragment(0, collective_key(1), whole, 0, 16'000)).ok());
  EXPECT_EQ(completed(), (Tokens{5}));
  EXPECT_EQ(sinks_[5]->bytes(), whole);
  EXPECT_EQ(messages_.size(), 0u);
  EXPECT_EQ(counters_.message_bytes_received, kLarge);
}

TEST_F(InboundMessagesTest, on_data__empty_message_completes_at_once) {
  post(collective_key(1), 5, 0);
  ASSERT_TRUE(arrive(fragment(0, collective_key(1), {}, 0, 0)).ok());
  EXPECT_EQ(completed(), (Tokens{5}));
}

TEST_F(InboundMessagesTest, on_data__duplicates_are_counted_and_dropped) {
  const ByteVector whole = pattern(1000);
  post(collective_key(1), 5, 1000);
  ASSERT_TRUE(arrive(fragment(0, collective_key(1), whole, 0, 496)).ok());
  ASSERT_TRUE(arrive(fragment(0, collective_key(1), whole, 0, 496)).ok());
  EXPECT_EQ(counters_.duplicate_fragments, 1u);
  ASSERT_TRUE(arrive(fragment(0, collective_key(1), whole, 496, 1000)).ok());
  EXPECT_EQ(completed(), (Tokens{5}));
  // Of a finished message: not a new one, whatever is posted by now.
  post(collective_key(1), 6, 1000);
  ASSERT_TRUE(arrive(fragment(0, collective_key(1), whole, 0, 496)).ok());
  EXPECT_EQ(counters_.duplicate_fragments, 2u);
  EXPECT_EQ(messages_.size(), 0u);
  EXPECT_EQ(sinks_[6]->placed(), 0u);
}

// BufferSink checks that no byte is placed twice.
TEST_F(InboundMessagesTest, on_data__overlapping_resends_are_placed_exactly_once) {
  for (uint64_t seed = 0; seed < 100; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    base::Random random(seed);
    const bool is_held = random.chance(0.5);
    const size_t length = 1 + random.below(is_held ? kEagerMessageBytesMax : kLarge);
    const ByteVector whole = pattern(length, seed);
    if (!is_held) post(collective_key(seed), seed, length);
    bool is_attached = !is_held;
    for (int i = 0; i < 1000 && messages_.size() + (i == 0) > 0; ++i) {
      const uint64_t begin = random.below(length) / 16 * 16;
      const uint64_t end = std::min<uint64_t>(length, begin + (1 + random.below(60)) * 16);
      ASSERT_TRUE(arrive(fragment(seed, collective_key(seed), whole, begin, end)).ok());
      if (!is_attached && random.chance(0.02)) {
        is_attached = true;
        attach(seed, receive(seed, length));
      }
    }
    ASSERT_TRUE(arrive(fragment(seed, collective_key(seed), whole, 0, length)).ok());
    if (!is_attached) attach(seed, receive(seed, length));
    ASSERT_EQ(messages_.size(), 0u);
    ASSERT_EQ(sinks_[seed]->bytes(), whole);
    ASSERT_EQ(sinks_[seed]->placed(), length);
  }
}

TEST_F(InboundMessagesTest, on_data__unexpected_message_is_held_until_attached) {
  const ByteVector whole = pattern(1000);
  ASSERT_TRUE(arrive(fragment(7, collective_key(1), whole, 496, 1000)).ok());
  ASSERT_TRUE(arrive(fragment(7, collective_key(1), whole, 0, 496)).ok());
  EXPECT_EQ(counters_.unexpected_messages, 1u);
  // Offered again with the signature.
  ASSERT_EQ(matcher_.held.size(), 2u);
  EXPECT_FALSE(matcher_.held[0].has_signature);
  EXPECT_TRUE(matcher_.held[1].has_signature);
  EXPECT_EQ(matcher_.held[0].message_id, 7u);
  EXPECT_TRUE(completed().empty());
  attach(7, receive(5, 1000));
  EXPECT_EQ(completed(), (Tokens{5}));
  EXPECT_EQ(sinks_[5]->bytes(), whole);
}

TEST_F(InboundMessagesTest, attach__in_the_middle_of_a_message) {
  const ByteVector whole = pattern(1000);
  ASSERT_TRUE(arrive(fragment(7, collective_key(1), whole, 0, 496)).ok());
  attach(7, receive(5, 1000));
  EXPECT_TRUE(completed().empty());
  EXPECT_EQ(sinks_[5]->placed(), 496u);
  ASSERT_TRUE(arrive(fragment(7, collective_key(1), whole, 496, 1000)).ok());
  EXPECT_EQ(completed(), (Tokens{5}));
}

TEST_F(InboundMessagesTest, attach__message_is_gone) {
  attach(99, receive(5, 1000));
  EXPECT_TRUE(effects_.events.empty());
  EXPECT_TRUE(effects_.grants.empty());
}

TEST_F(InboundMessagesTest, on_data__request_is_granted_when_a_receive_is_posted) {
  post(point_to_point_key(1), 5, kLarge);
  ASSERT_TRUE(arrive(request(0, point_to_point_key(1), kLarge)).ok());
  ASSERT_EQ(effects_.grants.size(), 1u);
  EXPECT_EQ(effects_.grants[0].key, point_to_point_key(1));
  EXPECT_EQ(effects_.grants[0].granted, kLarge);
  const ByteVector whole = pattern(kLarge);
  ASSERT_TRUE(arrive(fragment(0, point_to_point_key(1), whole, 0, kLarge)).ok());
  EXPECT_EQ(completed(), (Tokens{5}));
}

TEST_F(InboundMessagesTest, attach__grants_a_held_request) {
  ASSERT_TRUE(arrive(request(0, point_to_point_key(1), kLarge)).ok());
  EXPECT_TRUE(effects_.grants.empty());
  attach(0, receive(5, kLarge));
  EXPECT_EQ(effects_.grants.size(), 1u);
}

// A second grant would be kept by the sender for a message that never comes.
TEST_F(InboundMessagesTest, on_data__resent_request_is_granted_once) {
  ASSERT_TRUE(arrive(request(0, point_to_point_key(1), kLarge)).ok());
  ASSERT_TRUE(arrive(request(0, point_to_point_key(1), kLarge)).ok());
  attach(0, receive(5, kLarge));
  EXPECT_EQ(effects_.grants.size(), 1u);
  ASSERT_TRUE(arrive(request(0, point_to_point_key(1), kLarge)).ok());
  EXPECT_TRUE(effects_.grants.empty());
}

TEST_F(InboundMessagesTest, on_data__other_length_is_a_mismatch_reported_once) {
  const ByteVector whole = pattern(1000);
  post(collective_key(1), 5, 999);
  ASSERT_TRUE(arrive(fragment(0, collective_key(1), whole, 496, 1000)).ok());
  EXPECT_EQ(mismatch(), nullptr) << "waits for what the peer believes";
  ASSERT_TRUE(arrive(fragment(0, collective_key(1), whole, 0, 496)).ok());
  ASSERT_NE(mismatch(), nullptr);
  EXPECT_EQ(mismatch()->peer, kPeer);
  EXPECT_EQ(mismatch()->token, 5u);
  EXPECT_EQ(mismatch()->key, collective_key(1));
  EXPECT_EQ(mismatch()->length, 1000u);
  EXPECT_EQ(mismatch()->signature, signature());
  EXPECT_TRUE(completed().empty());
  EXPECT_EQ(sinks_[5]->placed(), 0u) << "not a byte of it";
  EXPECT_EQ(messages_.size(), 0u);
}

TEST_F(InboundMessagesTest, on_data__other_signature_is_a_mismatch) {
  const ByteVector whole = pattern(1000);
  post(collective_key(1), 5, 1000);
  DataFrame frame = fragment(0, collective_key(1), whole, 0, 496);
  frame.signature->reduce_op = 99;
  ASSERT_TRUE(arrive(frame).ok());
  ASSERT_NE(mismatch(), nullptr);
  EXPECT_EQ(mismatch()->signature->reduce_op, 99);
  ASSERT_TRUE(arrive(fragment(0, collective_key(1), whole, 496, 1000)).ok());
  EXPECT_EQ(mismatch(), nullptr);
  EXPECT_EQ(sinks_[5]->placed(), 0u);
}

TEST_F(InboundMessagesTest, attach__mismatch_of_a_held_message) {
  const ByteVector whole = pattern(1000);
  ASSERT_TRUE(arrive(fragment(0, collective_key(1), whole, 0, 1000)).ok());
  attach(0, receive(5, 500));
  ASSERT_NE(mismatch(), nullptr);
  EXPECT_TRUE(completed().empty());
  EXPECT_EQ(messages_.size(), 0u);
  EXPECT_EQ(messages_.eager_limit(), kEagerWindow + eager_charge(1000)) << "its credit is free";
}

TEST_F(InboundMessagesTest, withdraw_group__sink_is_never_touched_again) {
  const ByteVector whole = pattern(1000);
  post(collective_key(1), 5, 1000);
  ASSERT_TRUE(arrive(fragment(0, collective_key(1), whole, 0, 496)).ok());
  messages_.withdraw_group(7);
  sinks_.erase(5);  // the sanitizers watch
  ASSERT_TRUE(arrive(fragment(0, collective_key(1), whole, 496, 1000)).ok());
  EXPECT_TRUE(effects_.events.empty());
  EXPECT_EQ(messages_.size(), 0u);
  EXPECT_EQ(messages_.eager_limit(), kEagerWindow + eager_charge(1000));
  messages_.withdraw_group(7);  // nothing to do
}

TEST_F(InboundMessagesTest, on_data__granted_message_whose_receive_is_gone_is_dropped) {
  matcher_.dead_groups.insert(7);
  const ByteVector whole = pattern(kLarge);
  ASSERT_TRUE(arrive(fragment(0, collective_key(1), whole, 0, 16'000)).ok());
  ASSERT_TRUE(arrive(fragment(0, collective_key(1), whole, 16'000, kLarge)).ok());
  EXPECT_EQ(messages_.size(), 0u);
  EXPECT_EQ(counters_.message_bytes_received, 0u);
}

TEST_F(InboundMessagesTest, on_data__bytes_that_nobody_asked_or_charged_for_are_a_violation) {
  const ByteVector large = pattern(kLarge);
  EXPECT_FALSE(arrive(fragment(0, collective_key(1), large, 0, 16'000)).ok());
  EXPECT_FALSE(arrive(fragment(1, collective_key(2), large, 16'000, kLarge)).ok());
  const ByteVector small = pattern(100);
  DataFrame frame = fragment(2, point_to_point_key(3), small, 0, 100);
  frame.is_eager = false;
  EXPECT_FALSE(arrive(frame).ok());
  frame = fragment(3, point_to_point_key(4), {}, 0, 0);
  frame.is_eager = false;
  EXPECT_FALSE(arrive(frame).ok()) << "an empty message takes memory as well";
  frame = request(4, point_to_point_key(5), kLarge);
  frame.is_announced = false;
  EXPECT_FALSE(arrive(frame).ok());
  ASSERT_TRUE(arrive(request(5, point_to_point_key(6), kLarge)).ok());
  frame = fragment(5, point_to_point_key(6), large, 0, 16'000);
  EXPECT_FALSE(arrive(frame).ok()) << "announced, but not granted";
  EXPECT_EQ(counters_.message_bytes_received, 0u);
}

TEST_F(InboundMessagesTest, on_data__a_pulled_message_needs_no_credit) {
  const ByteVector small = pattern(100);
  post(point_to_point_key(1), 5, 100);
  DataFrame frame = fragment(0, point_to_point_key(1), small, 0, 100);
  frame.is_eager = false;
  ASSERT_TRUE(arrive(frame).ok());
  EXPECT_EQ(completed(), (Tokens{5}));
  EXPECT_EQ(messages_.eager_limit(), kEagerWindow);
  EXPECT_EQ(messages_.announced_limit(), kAnnouncedMax);
}

TEST_F(InboundMessagesTest, granted__counts_what_is_not_finished) {
  const ByteVector whole = pattern(kLarge);
  post(collective_key(1), 5, kLarge);
  for (int i = 0; i < 3; ++i) messages_.on_granted_unasked(7);
  messages_.on_granted_unasked(8);
  ASSERT_TRUE(arrive(fragment(0, collective_key(1), whole, 0, 48'000)).ok());
  EXPECT_EQ(messages_.granted(), 4u);
  ASSERT_TRUE(arrive(fragment(0, collective_key(1), whole, 48'000, kLarge)).ok());
  EXPECT_EQ(messages_.granted(), 3u);
  messages_.withdraw_group(7);
  EXPECT_EQ(messages_.granted(), 1u) << "the sender forgets them as well";
  messages_.drop_group(8);
  EXPECT_EQ(messages_.granted(), 0u);
}

TEST_F(InboundMessagesTest, on_data__message_of_a_dead_group_leaves_nothing_behind) {
  matcher_.dead_groups.insert(7);
  const ByteVector whole = pattern(1000);
  for (uint64_t id = 0; id < 10; ++id) {
    ASSERT_TRUE(arrive(fragment(id, collective_key(id), whole, 0, 496)).ok());
    ASSERT_TRUE(arrive(fragment(id, collective_key(id), whole, 496, 1000)).ok());
    ASSERT_TRUE(arrive(request(100 + id, point_to_point_key(id), kLarge)).ok());
  }
  EXPECT_EQ(messages_.size(), 0u);
  EXPECT_EQ(messages_.eager_limit(), kEagerWindow + 10 * eager_charge(1000));
}

TEST_F(InboundMessagesTest, drop_group__frees_what_was_held) {
  const ByteVector whole = pattern(1000);
  ASSERT_TRUE(arrive(fragment(0, collective_key(1, 0, 8), whole, 0, 496)).ok());
  ASSERT_TRUE(arrive(fragment(1, collective_key(1, 0, 9), whole, 0, 496)).ok());
  messages_.drop_group(8);
  EXPECT_EQ(messages_.size(), 1u);
  EXPECT_EQ(messages_.eager_limit(), kEagerWindow + eager_charge(1000));
  ASSERT_TRUE(arrive(fragment(0, collective_key(1, 0, 8), whole, 496, 1000)).ok());
  EXPECT_EQ(messages_.size(), 1u) << "what still comes for it is dropped";
}

TEST_F(InboundMessagesTest, keep_complete__drops_what_will_never_be_whole) {
  const ByteVector whole = pattern(1000);
  ASSERT_TRUE(arrive(fragment(0, collective_key(0), whole, 0, 1000)).ok());
  ASSERT_TRUE(arrive(fragment(1, collective_key(1), whole, 0, 496)).ok());
  ASSERT_TRUE(arrive(request(2, point_to_point_key(2), 10 * kLarge)).ok());
  ASSERT_TRUE(arrive(fragment(3, collective_key(3), {}, 0, 0)).ok());
  messages_.keep_complete();
  EXPECT_TRUE(messages_.has(0));
  EXPECT_FALSE(messages_.has(1));
  EXPECT_FALSE(messages_.has(2));
  EXPECT_TRUE(messages_.has(3));
  attach(0, receive(5, 1000));
  EXPECT_EQ(completed(), (Tokens{5}));
  EXPECT_EQ(sinks_[5]->bytes(), whole);
}

TEST_F(InboundMessagesTest, on_data__overdrawn_credit_is_a_violation) {
  const ByteVector whole = pattern(kEagerMessageBytesMax);
  const size_t fitting = kEagerWindow / eager_charge(whole.size());
  for (uint64_t id = 0; id < fitting; ++id) {
    ASSERT_TRUE(arrive(fragment(id, collective_key(id), whole, 0, 16)).ok());
  }
  const base::Status status = arrive(fragment(fitting, collective_key(fitting), whole, 0, 16));
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, base::ErrorCode::kPeerLost);
}

TEST_F(InboundMessagesTest, on_data__credit_comes_back_with_every_finished_message) {
  const ByteVector whole = pattern(kEagerMessageBytesMax);
  for (uint64_t id = 0; id < 1000; ++id) {
    post(collective_key(id), id, whole.size());
    ASSERT_TRUE(arrive(fragment(id, collective_key(id), whole, 0, whole.size())).ok()) << id;
  }
  EXPECT_EQ(messages_.eager_limit(), kEagerWindow + 1000 * eager_charge(whole.size()));
}

TEST_F(InboundMessagesTest, on_data__eager_message_too_long) {
  const ByteVector whole = pattern(kLarge);
  DataFrame frame = fragment(0, collective_key(1), whole, 0, 16);
  frame.is_eager = true;
  EXPECT_FALSE(arrive(frame).ok());
}

TEST_F(InboundMessagesTest, on_data__fragments_that_disagree) {
  const ByteVector whole = pattern(1000);
  ASSERT_TRUE(arrive(fragment(0, collective_key(1), whole, 0, 496)).ok());
  EXPECT_FALSE(arrive(fragment(0, collective_key(2), whole, 496, 1000)).ok());
  EXPECT_FALSE(
      arrive(fragment(0, collective_key(1), base::Bytes(whole).first(992), 496, 992)).ok());
}

TEST_F(InboundMessagesTest, on_data__fragment_that_splits_an_element) {
  const ByteVector whole = pattern(1000);
  post(collective_key(1), 5, 1000);
  EXPECT_FALSE(arrive(fragment(0, collective_key(1), whole, 8, 496)).ok());
  EXPECT_FALSE(arrive(fragment(0, collective_key(1), whole, 0, 500)).ok());
  EXPECT_TRUE(arrive(fragment(0, collective_key(1), whole, 496, 1000)).ok());
}

TEST_F(InboundMessagesTest, on_data__a_message_of_too_many_pieces) {
  const uint64_t length = uint64_t{1} << 40;
  post(collective_key(1), 5, 0);  // a mismatch, whose bytes are dropped
  const ByteVector piece(16);
  base::Status status = base::ok_status();
  uint64_t pieces = 0;
  for (; status.ok() && pieces <= 2 * kMessageRangesMax; ++pieces) {
    DataFrame frame;
    frame.key = collective_key(1);
    frame.message_length = length;
    frame.offset = 32 * (pieces + 1);
    frame.bytes = piece;
    status = arrive(frame);
  }
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(pieces, kMessageRangesMax + 1);
}

TEST_F(InboundMessagesTest, on_data__too_many_announced_messages) {
  base::Status status = base::ok_status();
  uint64_t id = 0;
  for (; status.ok() && id <= kAnnouncedMax; ++id) {
    status = arrive(request(id, point_to_point_key(id), kLarge));
  }
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(id, kAnnouncedMax + 1);
  EXPECT_EQ(messages_.size(), kAnnouncedMax);
}

TEST_F(InboundMessagesTest, announced_limit__grows_with_every_finished_message) {
  const ByteVector whole = pattern(kLarge);
  for (uint64_t id = 0; id < 2 * kAnnouncedMax; ++id) {
    DataFrame frame = request(id, point_to_point_key(id), 0);  // empty, and whole at once
    ASSERT_TRUE(arrive(frame).ok()) << id;
    attach(id, receive(id, 0));
    ASSERT_EQ(completed(), (Tokens{id}));
  }
  EXPECT_EQ(messages_.announced_limit(), 3 * kAnnouncedMax);
}

TEST_F(InboundMessagesTest, on_data__the_id_that_no_set_can_hold) {
  EXPECT_FALSE(arrive(request(UINT64_MAX, point_to_point_key(1), kLarge)).ok());
  post(point_to_point_key(1), 5, kLarge);
  EXPECT_TRUE(arrive(request(UINT64_MAX - 1, point_to_point_key(1), kLarge)).ok());
}

}  // namespace
}  // namespace securefabric::transport
