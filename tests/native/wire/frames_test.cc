#include "wire/frames.h"

#include <gtest/gtest.h>

#include "frame_samples.h"

namespace securefabric::wire {
namespace {

TEST(Frames, encode__golden_bytes_of_every_frame) {
  std::vector<bool> seen(std::variant_size_v<Frame>);
  for (const Sample& sample : samples()) {
    EXPECT_EQ(base::to_hex(encoded(sample.frame)), sample.golden) << sample.name;
    seen[sample.frame.index()] = true;
  }
  EXPECT_EQ(std::count(seen.begin(), seen.end(), true), std::variant_size_v<Frame>)
      << "every frame has a sample";
}

TEST(Frames, encoded_bytes__constants_fill_the_stated_layout) {
  static_assert(kDataFrameBytes == 1 + 1 + 2 + 4 + 5 * 8);
  static_assert(kSignatureBytes == 4 + 4 + 8 + 24 + 8);
  static_assert(kAckFrameBytes == 1 + 1 + 2 + 8 + 4 + 4);
  static_assert(kGrantFrameBytes == 1 + 1 + 4 + 4 * 8);
  static_assert(kStatusFrameBytes == 1 + 1 + 8 + 8 + kSignatureBytes);
  static_assert(kAbortFrameBytes == 1 + 1 + 2 + 8 + 24);
  EXPECT_EQ(kDataFrameBytes % 16, 0u) << "fragments stay aligned to the cipher's blocks";
  EXPECT_EQ(kSignatureBytes % 16, 0u) << "likewise";
}

TEST(FramesDeathTest, encode__what_cannot_be_stated_is_our_bug) {
  ByteVector out(70'000);
  base::ByteWriter writer(out);
  const ByteVector bitmap(AckFrame::kBitmapBytesMax + 1);
  EXPECT_DEATH(encode(AckFrame{{}, 1, 0, 0, bitmap}, writer), "broken invariant");
  const std::string reason(AbortFrame::kReasonBytesMax + 1, 'x');
  EXPECT_DEATH(encode(AbortFrame{1, 0, reason}, writer), "broken invariant");
  EXPECT_DEATH(encode(StatusFrame{1, 0, {}, true, true}, writer), "broken invariant");
  const ByteVector fragment(65'536);
  DataFrame frame;
  frame.message_length = fragment.size();
  frame.bytes = fragment;
  EXPECT_DEATH(encode_data_header(frame, writer), "broken invariant");
}

}  // namespace
}  // namespace securefabric::wire
