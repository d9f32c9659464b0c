// Collects the plaintext of one packet as a list of parts, so that sealing gathers it in one pass:
// frame headers and small fragments are written into a buffer here, large fragments stay where the
// caller has them.
#pragma once

#include <array>
#include <span>
#include <vector>

#include "base/bytes.h"
#include "transport/limits.h"
#include "wire/frames.h"

namespace securefabric::transport {

class PacketBuilder {
 public:
  // Starts a packet whose plaintext may take `capacity` bytes.
  void begin(size_t capacity);

  size_t size() const { return size_; }
  size_t room() const { return capacity_ - size_; }
  bool empty() const { return size_ == 0; }

  // Each returns false, and adds nothing, when the frame does not fit.
  template <typename FrameT>
  bool add(const FrameT& frame) {
    if (encoded_bytes(frame) > room() || !has_header_room(encoded_bytes(frame))) return false;
    base::ByteWriter out(header_space());
    encode(frame, out);
    commit_header(out.size());
    return true;
  }
  bool add_data(const wire::DataFrame& frame);
  // Room for the fragment of one more DATA frame, header included; 0 when none can be added.
  size_t data_room() const;
  // Fills the packet with PADDING up to its capacity, or up to `size` bytes of plaintext.
  void pad() { pad_to(capacity_); }
  void pad_to(size_t size);

  std::span<const base::Bytes> parts() const { return std::span(parts_).first(part_count_); }
  // Bytes of the same message right behind the last part: the next packet's, probably.
  size_t following() const { return following_; }

 private:
  // A whole packet of small messages fits.
  static constexpr size_t kHeaderSpace = kDatagramBytesMax;
  static constexpr size_t kPartsMax = 64;
  // A fragment up to this size is copied behind its header: that costs little more than a part of
  // its own, and the largest packet full of small messages does not run out of parts.
  static constexpr size_t kCopyBytesMax = 1024;

  // A frame takes two parts, and padding must always find one more.
  bool has_header_room(size_t bytes) const {
    return header_used_ + bytes <= kHeaderSpace && part_count_ + 3 <= kPartsMax;
  }
  base::MutableBytes header_space() { return base::MutableBytes(headers_).subspan(header_used_); }
  void commit_header(size_t bytes);

  std::array<uint8_t, kHeaderSpace> headers_;  // encoded frame headers, back to back
  size_t header_used_ = 0;                     // bytes of it
  std::array<base::Bytes, kPartsMax> parts_;   // alternating pieces of headers_ and fragments
  size_t part_count_ = 0;                      // of parts_
  bool last_part_is_header_ = false;           // the last part may be extended in place
  size_t following_ = 0;                       // see following()
  size_t size_ = 0;                            // bytes of plaintext so far
  size_t capacity_ = 0;                        // bytes of plaintext at most
};

}  // namespace securefabric::transport
