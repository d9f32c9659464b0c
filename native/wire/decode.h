// Decodes the plaintext of a packet into frames, one at a time.
//
// Only plaintext whose tag verified gets here, so a malformed frame means a peer that breaks the
// protocol (or a bug on its side), not an attacker on the path. It still may not crash, read out
// of bounds or be half applied: a frame is returned whole and valid, or not at all.
#pragma once

#include <optional>

#include "wire/frames.h"

namespace securefabric::wire {

class FrameDecoder {
 public:
  explicit FrameDecoder(base::Bytes plaintext) : reader_(plaintext) {}

  // The next frame, or nothing at the end of the packet or at the first malformed byte.
  std::optional<Frame> next();
  bool is_malformed() const { return malformed_; }

 private:
  std::optional<Frame> malformed();
  std::optional<Frame> padding();
  std::optional<Frame> data();
  std::optional<Frame> ack();
  std::optional<Frame> grant();
  std::optional<Frame> status();
  std::optional<Frame> abort();
  std::optional<Frame> epoch();
  // Returns `frame` if every read so far was inside the packet.
  std::optional<Frame> if_complete(Frame frame);

  base::ByteReader reader_;
  bool malformed_ = false;  // sticky
};

}  // namespace securefabric::wire
