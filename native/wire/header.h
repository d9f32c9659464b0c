// The outer header: sixteen bytes in the clear in front of every packet, all of it AAD.
//
//   offset  size  field
//        0     1  version (high 4 bits) = 1, class (low 4 bits) = 1
//        1     1  flags: bit 0 is the epoch's number modulo 2; the others are reserved, 0
//        2     2  path_id: sender socket, receiver socket
//        4     4  SPI
//        8     8  packet number
//
// Network byte order. PROTOCOL.md §1.
#pragma once

#include "base/bytes.h"
#include "base/ids.h"

namespace securefabric::wire {

inline constexpr size_t kHeaderBytes = 16;
inline constexpr uint8_t kVersionAndClass = 0x11;

struct Header {
  base::PathId path;                     // as the sender numbers it
  base::Spi spi;                         // as the receiver chose it
  base::PacketNumber packet_number = 0;  // on this path, in this direction
  uint8_t epoch_bit = 0;                 // 0 or 1: which of the link's two epochs sealed it
  bool operator==(const Header&) const = default;
};

enum class HeaderStatus { kOk, kTooShort, kBadVersion };

void encode_header(const Header& header, base::MutableBytes out);
// `out` is written only when the result is kOk. A datagram that cannot hold a header and an
// authentication tag is kTooShort.
HeaderStatus decode_header(base::Bytes datagram, Header& out);

}  // namespace securefabric::wire
