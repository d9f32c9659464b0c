#include "transport/packet_builder.h"

#include <gtest/gtest.h>

#include "base/random.h"
#include "transport/limits.h"
#include "wire/decode.h"

namespace securefabric::transport {
namespace {

using ByteVector = std::vector<uint8_t>;

ByteVector gathered(const PacketBuilder& builder) {
  ByteVector all;
  for (const base::Bytes part : builder.parts()) all.insert(all.end(), part.begin(), part.end());
  return all;
}

std::vector<wire::Frame> decoded(base::Bytes plaintext) {
  std::vector<wire::Frame> frames;
  wire::FrameDecoder decoder(plaintext);
  while (auto frame = decoder.next()) frames.push_back(*frame);
  EXPECT_FALSE(decoder.is_malformed());
  return frames;
}

wire::DataFrame fragment(base::Bytes bytes) {
  wire::DataFrame frame;
  frame.message_length = bytes.size();
  frame.signature.emplace();
  frame.bytes = bytes;
  return frame;
}

TEST(PacketBuilder, begin__starts_empty) {
  PacketBuilder builder;
  builder.begin(100);
  EXPECT_TRUE(builder.empty());
  EXPECT_EQ(builder.room(), 100u);
  EXPECT_TRUE(builder.parts().empty());
}

TEST(PacketBuilder, add__headers_share_one_part) {
  PacketBuilder builder;
  builder.begin(1000);
  EXPECT_TRUE(builder.add(wire::PingFrame{}));
  EXPECT_TRUE(builder.add(wire::CreditFrame{5, 6, 7}));
  EXPECT_EQ(builder.parts().size(), 1u);
  EXPECT_EQ(builder.size(), wire::kPingFrameBytes + wire::kCreditFrameBytes);
  EXPECT_EQ(decoded(gathered(builder)).size(), 2u);
}

TEST(PacketBuilder, add__what_does_not_fit_changes_nothing) {
  PacketBuilder builder;
  builder.begin(wire::kCreditFrameBytes);
  EXPECT_TRUE(builder.add(wire::PingFrame{}));
  EXPECT_FALSE(builder.add(wire::CreditFrame{5, 6, 7}));
  EXPECT_EQ(builder.size(), wire::kPingFrameBytes);
}

TEST(PacketBuilder, add_data__large_fragments_stay_where_they_are) {
  const ByteVector bytes(5000, 7);
  PacketBuilder builder;
  builder.begin(8000);
  ASSERT_TRUE(builder.add_data(fragment(bytes)));
  ASSERT_TRUE(builder.add(wire::PingFrame{}));
  ASSERT_EQ(builder.parts().size(), 3u);
  EXPECT_EQ(builder.parts()[1].data(), bytes.data());
  EXPECT_EQ(decoded(gathered(builder)).size(), 2u);
}

TEST(PacketBuilder, following__is_the_rest_of_the_message_behind_the_last_part) {
  const ByteVector bytes(10'000, 7);
  wire::DataFrame frame = fragment(base::Bytes(bytes).subspan(1'000, 4'000));
  frame.message_length = bytes.size();
  frame.offset = 1'000;
  frame.signature.reset();
  PacketBuilder builder;
  builder.begin(8'900);
  EXPECT_EQ(builder.following(), 0u);
  ASSERT_TRUE(builder.add_data(frame));
  EXPECT_EQ(builder.following(), 5'000u);
  ASSERT_TRUE(builder.add(wire::PingFrame{}));
  EXPECT_EQ(builder.following(), 0u);  // the last part is a header
  ASSERT_TRUE(builder.add_data(frame));
  builder.pad();
  EXPECT_EQ(builder.following(), 0u);  // the last part is padding
  builder.begin(8'900);
  EXPECT_EQ(builder.following(), 0u);
  frame.bytes = frame.bytes.first(1'000);
  ASSERT_TRUE(builder.add_data(frame));
  EXPECT_EQ(builder.following(), 0u);  // copied behind its header
}

TEST(PacketBuilder, add_data__does_not_fit) {
  const ByteVector bytes(100);
  PacketBuilder builder;
  builder.begin(wire::kDataFrameBytes + wire::kSignatureBytes + 99);
  EXPECT_FALSE(builder.add_data(fragment(bytes)));
  EXPECT_TRUE(builder.empty());
}

// A flood of tiny messages must fill packets, not be padded to them.
TEST(PacketBuilder, add_data__a_packet_full_of_small_messages) {
  for (const size_t bytes : {8u, 256u, 257u, 480u, 1'024u, 1'025u, 2'000u}) {
    const ByteVector message(bytes, 7);
    const size_t whole = wire::kDataFrameBytes + wire::kSignatureBytes + bytes;
    PacketBuilder builder;
    const size_t capacity = kDatagramBytesMax - 32;
    builder.begin(capacity);
    size_t count = 0;
    while (builder.data_room() >= whole && builder.add_data(fragment(message))) ++count;
    EXPECT_EQ(count, capacity / whole) << bytes;
    builder.pad();
    EXPECT_EQ(decoded(gathered(builder)).size(), count);
  }
}

TEST(PacketBuilder, pad__fills_with_zeros_to_the_capacity) {
  PacketBuilder builder;
  builder.begin(300);
  ASSERT_TRUE(builder.add(wire::PingFrame{}));
  builder.pad();
  EXPECT_EQ(builder.size(), 300u);
  EXPECT_EQ(builder.room(), 0u);
  builder.pad();
  const ByteVector all = gathered(builder);
  EXPECT_EQ(all.size(), 300u);
  EXPECT_EQ(std::count(all.begin(), all.end(), 0), 299);
}

TEST(PacketBuilder, every_packet__decodes_to_what_was_added) {
  const ByteVector bytes(9000, 9);
  for (uint64_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    base::Random random(seed);
    PacketBuilder builder;
    const size_t capacity = 1168 + random.below(kDatagramBytesMax - 32 - 1168);
    builder.begin(capacity);
    size_t count = 0;
    for (int i = 0; i < 400; ++i) {
      const bool is_data = random.chance(0.7);
      const size_t size = random.below(random.chance(0.2) ? 3000 : 300);
      const bool was_added = is_data ? builder.add_data(fragment(base::Bytes(bytes).first(size)))
                                     : builder.add(wire::CreditFrame{1, 2, 3});
      count += was_added;
      ASSERT_EQ(builder.size() + builder.room(), capacity);
    }
    if (random.chance(0.5)) builder.pad();
    const ByteVector all = gathered(builder);
    ASSERT_EQ(all.size(), builder.size());
    ASSERT_EQ(decoded(all).size(), count);
  }
}

}  // namespace
}  // namespace securefabric::transport
