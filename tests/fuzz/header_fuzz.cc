// The outer header: whatever decodes encodes back to the bytes it came from.
#include "wire/header.h"

#include <algorithm>

#include "base/check.h"

namespace wire = securefabric::wire;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const securefabric::base::Bytes datagram(data, size);
  wire::Header header;
  if (wire::decode_header(datagram, header) != wire::HeaderStatus::kOk) {
    SF_CHECK(header == wire::Header{});
    return 0;
  }
  std::array<uint8_t, wire::kHeaderBytes> again{};
  wire::encode_header(header, again);
  SF_CHECK(std::equal(again.begin(), again.end(), datagram.begin()));
  return 0;
}
