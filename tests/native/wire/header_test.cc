#include "wire/header.h"

#include <gtest/gtest.h>

#include "base/random.h"

namespace securefabric::wire {
namespace {

using ByteVector = std::vector<uint8_t>;

constexpr size_t kSmallestDatagram = kHeaderBytes + 16;

ByteVector encoded(const Header& header) {
  ByteVector bytes(kSmallestDatagram);
  encode_header(header, bytes);
  return bytes;
}

TEST(Header, encode__golden_bytes) {
  const Header header{base::PathId{0x0203}, base::Spi{0xA1B2C3D4}, 0x0102030405060708u};
  EXPECT_EQ(base::to_hex(base::Bytes(encoded(header)).first(kHeaderBytes)),
            "11000203a1b2c3d40102030405060708");
  Header later = header;
  later.epoch_bit = 1;
  EXPECT_EQ(base::to_hex(base::Bytes(encoded(later)).first(kHeaderBytes)),
            "11010203a1b2c3d40102030405060708");
}

TEST(Header, encode__writes_sixteen_bytes_only) {
  ByteVector bytes(kHeaderBytes + 4, 0xEE);
  encode_header({}, bytes);
  EXPECT_EQ(base::to_hex(base::Bytes(bytes).last(4)), "eeeeeeee");
}

TEST(HeaderDeathTest, encode__short_buffer_is_our_bug) {
  ByteVector bytes(kHeaderBytes - 1);
  EXPECT_DEATH(encode_header({}, bytes), "broken invariant");
}

TEST(Header, decode__round_trip) {
  base::Random random(1);
  for (int i = 0; i < 1000; ++i) {
    const Header header{base::PathId{static_cast<uint16_t>(random.next())},
                        base::Spi{static_cast<uint32_t>(random.next())}, random.next(),
                        static_cast<uint8_t>(random.below(2))};
    Header decoded;
    ASSERT_EQ(decode_header(encoded(header), decoded), HeaderStatus::kOk);
    ASSERT_EQ(decoded, header);
  }
}

TEST(Header, decode__every_short_length) {
  const ByteVector whole = encoded({});
  Header out{base::PathId{9}, base::Spi{9}, 9};
  const Header before = out;
  for (size_t size = 0; size < kSmallestDatagram; ++size) {
    EXPECT_EQ(decode_header(base::Bytes(whole).first(size), out), HeaderStatus::kTooShort) << size;
  }
  EXPECT_EQ(out, before);
}

TEST(Header, decode__every_other_version_class_and_flag) {
  for (int value = 0; value < 256; ++value) {
    ByteVector bytes = encoded({});
    Header out{base::PathId{9}, base::Spi{9}, 9};
    bytes[0] = static_cast<uint8_t>(value);
    const bool is_ours = value == kVersionAndClass;
    EXPECT_EQ(decode_header(bytes, out), is_ours ? HeaderStatus::kOk : HeaderStatus::kBadVersion);
    if (!is_ours) {
      EXPECT_EQ(out.packet_number, 9u) << "written to on failure";
    }
    bytes[0] = kVersionAndClass;
    bytes[1] = static_cast<uint8_t>(value);
    EXPECT_EQ(decode_header(bytes, out),
              value <= 1 ? HeaderStatus::kOk : HeaderStatus::kBadVersion);
  }
}

}  // namespace
}  // namespace securefabric::wire
