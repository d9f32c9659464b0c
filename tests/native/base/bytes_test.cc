#include "base/bytes.h"

#include <gtest/gtest.h>

#include <array>

namespace securefabric::base {
namespace {

TEST(ByteWriter, integers__are_in_network_order) {
  std::array<uint8_t, 15> buffer{};
  ByteWriter out(buffer);
  out.u8(0x01);
  out.u16(0x0203);
  out.u32(0x04050607);
  out.u64(0x08090A0B0C0D0E0Fu);
  EXPECT_EQ(out.size(), 15u);
  EXPECT_EQ(out.remaining(), 0u);
  EXPECT_EQ(to_hex(out.written()), "0102030405060708090a0b0c0d0e0f");
}

TEST(ByteWriter, bytes__appends_and_takes_nothing_for_empty) {
  std::array<uint8_t, 4> buffer{};
  ByteWriter out(buffer);
  out.bytes({});
  out.bytes(as_bytes("abc"));
  EXPECT_EQ(to_text(out.written()), "abc");
}

TEST(ByteWriterDeathTest, overrun__is_our_bug) {
  std::array<uint8_t, 3> buffer{};
  ByteWriter out(buffer);
  EXPECT_DEATH(out.u32(1), "broken invariant");
  EXPECT_DEATH(out.bytes(as_bytes("abcd")), "broken invariant");
}

TEST(ByteReader, integers__round_trip) {
  std::array<uint8_t, 15> buffer{};
  ByteWriter out(buffer);
  out.u8(0xFE);
  out.u16(0xFEDC);
  out.u32(0xFEDCBA98);
  out.u64(0xFEDCBA9876543210u);
  ByteReader in(buffer);
  EXPECT_EQ(in.u8(), 0xFE);
  EXPECT_EQ(in.u16(), 0xFEDC);
  EXPECT_EQ(in.u32(), 0xFEDCBA98u);
  EXPECT_EQ(in.u64(), 0xFEDCBA9876543210u);
  EXPECT_TRUE(in.ok());
  EXPECT_TRUE(in.at_end());
}

TEST(ByteReader, short_read__latches_and_yields_zeros) {
  const std::array<uint8_t, 3> buffer{1, 2, 3};
  ByteReader in(buffer);
  EXPECT_EQ(in.u8(), 1);
  EXPECT_EQ(in.u32(), 0u);
  EXPECT_FALSE(in.ok());
  EXPECT_TRUE(in.at_end());
  EXPECT_EQ(in.u8(), 0);
  EXPECT_TRUE(in.take(0).empty());
  EXPECT_FALSE(in.ok());
}

TEST(ByteReader, take__splits_without_copying) {
  const std::array<uint8_t, 5> buffer{1, 2, 3, 4, 5};
  ByteReader in(buffer);
  const Bytes first = in.take(2);
  EXPECT_EQ(first.data(), buffer.data());
  EXPECT_EQ(in.remaining(), 3u);
  EXPECT_EQ(in.rest().data(), buffer.data() + 2);
  EXPECT_TRUE(in.take(4).empty());
  EXPECT_FALSE(in.ok());
}

TEST(Bytes, to_hex__is_lower_case) {
  const std::array<uint8_t, 3> buffer{0x00, 0xAF, 0x5};
  EXPECT_EQ(to_hex(buffer), "00af05");
  EXPECT_EQ(to_hex({}), "");
  EXPECT_EQ(to_vector(buffer), (std::vector<uint8_t>{0, 0xAF, 5}));
}

}  // namespace
}  // namespace securefabric::base
