#include "wire/header.h"

namespace securefabric::wire {
namespace {

constexpr size_t kAuthTagBytes = 16;
constexpr uint8_t kEpochFlag = 0x01;
static_assert(1 + 1 + sizeof(base::PathId) + sizeof(base::Spi) + sizeof(base::PacketNumber) ==
              kHeaderBytes);

}  // namespace

void encode_header(const Header& header, base::MutableBytes out) {
  SF_CHECK(out.size() >= kHeaderBytes && header.epoch_bit <= kEpochFlag);
  base::ByteWriter writer(out.first(kHeaderBytes));
  writer.u8(kVersionAndClass);
  writer.u8(header.epoch_bit);
  writer.u16(header.path.value);
  writer.u32(header.spi.value);
  writer.u64(header.packet_number);
}

HeaderStatus decode_header(base::Bytes datagram, Header& out) {
  if (datagram.size() < kHeaderBytes + kAuthTagBytes) return HeaderStatus::kTooShort;
  base::ByteReader reader(datagram);
  const uint8_t version_and_class = reader.u8();
  const uint8_t flags = reader.u8();
  if (version_and_class != kVersionAndClass || (flags & ~kEpochFlag) != 0) {
    return HeaderStatus::kBadVersion;
  }
  out.epoch_bit = flags & kEpochFlag;
  out.path = base::PathId{reader.u16()};
  out.spi = base::Spi{reader.u32()};
  out.packet_number = reader.u64();
  return HeaderStatus::kOk;
}

}  // namespace securefabric::wire
