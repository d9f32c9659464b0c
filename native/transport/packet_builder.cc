#include "transport/packet_builder.h"

#include <algorithm>

namespace securefabric::transport {

void PacketBuilder::begin(size_t capacity) {
  header_used_ = 0;
  part_count_ = 0;
  last_part_is_header_ = false;
  following_ = 0;
  size_ = 0;
  capacity_ = capacity;
}

void PacketBuilder::commit_header(size_t bytes) {
  const base::Bytes added = base::Bytes(headers_).subspan(header_used_, bytes);
  if (last_part_is_header_) {
    base::Bytes& last = parts_[part_count_ - 1];
    last = base::Bytes(last.data(), last.size() + bytes);
  } else {
    parts_[part_count_++] = added;
    last_part_is_header_ = true;
  }
  following_ = 0;
  header_used_ += bytes;
  size_ += bytes;
}

size_t PacketBuilder::data_room() const {
  return has_header_room(wire::kDataFrameBytes + wire::kSignatureBytes) ? room() : 0;
}

bool PacketBuilder::add_data(const wire::DataFrame& frame) {
  const size_t header_bytes = encoded_bytes(frame);
  if (header_bytes + frame.bytes.size() > room() || !has_header_room(header_bytes)) return false;
  base::ByteWriter out(header_space());
  encode_data_header(frame, out);
  const bool is_copied =
      frame.bytes.size() <= kCopyBytesMax && has_header_room(header_bytes + frame.bytes.size());
  if (is_copied) out.bytes(frame.bytes);
  commit_header(out.size());
  if (is_copied) return true;
  parts_[part_count_++] = frame.bytes;
  last_part_is_header_ = false;
  following_ = frame.message_length - frame.end();
  size_ += frame.bytes.size();
  return true;
}

void PacketBuilder::pad_to(size_t size) {
  static constexpr std::array<uint8_t, kDatagramBytesMax> kZeros{};
  SF_CHECK(size <= capacity_);
  if (size <= size_) return;
  SF_CHECK(part_count_ < kPartsMax);
  parts_[part_count_++] = base::Bytes(kZeros).first(size - size_);
  last_part_is_header_ = false;
  following_ = 0;
  size_ = size;
}

}  // namespace securefabric::transport
