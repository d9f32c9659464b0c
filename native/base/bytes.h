// Byte spans, and a reader and a writer of network-order integers.
//
// The reader never throws and never reads past its end: a short read latches `ok() == false` and
// yields zeros, so a decoder checks once at the end of a structure instead of after each field.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "base/check.h"

namespace securefabric::base {

using Bytes = std::span<const uint8_t>;
using MutableBytes = std::span<uint8_t>;

class ByteReader {
 public:
  explicit ByteReader(Bytes bytes) : rest_(bytes) {}

  uint8_t u8() { return static_cast<uint8_t>(integer(1)); }
  uint16_t u16() { return static_cast<uint16_t>(integer(2)); }
  uint32_t u32() { return static_cast<uint32_t>(integer(4)); }
  uint64_t u64() { return integer(8); }

  Bytes take(size_t count) {
    if (count > rest_.size()) {
      ok_ = false;
      rest_ = {};
      return {};
    }
    const Bytes taken = rest_.first(count);
    rest_ = rest_.subspan(count);
    return taken;
  }

  bool ok() const { return ok_; }
  bool at_end() const { return rest_.empty(); }
  size_t remaining() const { return rest_.size(); }
  Bytes rest() const { return rest_; }

 private:
  uint64_t integer(size_t width) {
    const Bytes taken = take(width);
    uint64_t value = 0;
    for (const uint8_t byte : taken) value = value << 8 | byte;
    return value;
  }

  Bytes rest_;      // not yet read
  bool ok_ = true;  // false for ever after the first read past the end
};

// Writes into a buffer whose size the caller has checked; running over is our bug.
class ByteWriter {
 public:
  explicit ByteWriter(MutableBytes buffer) : buffer_(buffer) {}

  void u8(uint8_t value) { integer(value, 1); }
  void u16(uint16_t value) { integer(value, 2); }
  void u32(uint32_t value) { integer(value, 4); }
  void u64(uint64_t value) { integer(value, 8); }
  void bytes(Bytes source) {
    SF_CHECK(source.size() <= remaining());
    if (!source.empty()) std::memcpy(buffer_.data() + size_, source.data(), source.size());
    size_ += source.size();
  }

  size_t size() const { return size_; }
  size_t remaining() const { return buffer_.size() - size_; }
  Bytes written() const { return buffer_.first(size_); }

 private:
  void integer(uint64_t value, size_t width) {
    SF_CHECK(width <= remaining());
    for (size_t i = 0; i < width; ++i) {
      buffer_[size_ + i] = static_cast<uint8_t>(value >> (8 * (width - 1 - i)));
    }
    size_ += width;
  }

  MutableBytes buffer_;
  size_t size_ = 0;  // bytes written so far
};

inline Bytes as_bytes(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}
inline std::string to_text(Bytes bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
inline std::vector<uint8_t> to_vector(Bytes bytes) {
  return {bytes.begin(), bytes.end()};
}

// Lower-case hexadecimal, for ids in messages; never for secrets.
std::string to_hex(Bytes bytes);

}  // namespace securefabric::base
