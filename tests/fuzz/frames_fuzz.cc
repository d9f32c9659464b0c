// The frames of one packet: whatever the decoder returns is whole and valid, so it encodes to bytes
// that decode to the same frame.
#include "wire/frames.h"

#include "base/check.h"
#include "wire/decode.h"
#include "wire/frame_samples.h"

namespace wire = securefabric::wire;

namespace {

void check_frame(const wire::Frame& frame) {
  const wire::ByteVector bytes = wire::encoded(frame);
  wire::FrameDecoder decoder(bytes);
  const auto again = decoder.next();
  SF_CHECK(again.has_value() && again->index() == frame.index());
  SF_CHECK(wire::encoded(*again) == bytes);
  SF_CHECK(!decoder.next().has_value() && !decoder.is_malformed());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  wire::FrameDecoder decoder(securefabric::base::Bytes(data, size));
  size_t frames = 0;
  while (const auto frame = decoder.next()) {
    check_frame(*frame);
    SF_CHECK(++frames <= size);
  }
  SF_CHECK(!decoder.next().has_value());
  return 0;
}
