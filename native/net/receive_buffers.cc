#include "net/receive_buffers.h"

#include <netinet/in.h>
#include <netinet/udp.h>

#include <cstring>

#include "base/check.h"

namespace securefabric::net {
namespace {

// What the control messages of one read say.
struct ControlValues {
  size_t segment_bytes = 0;            // 0: GRO joined nothing
  base::Ecn ecn = base::Ecn::kNotEct;  // low two bits of TOS or traffic class
  uint32_t drop_count = 0;             // valid when has_drop_count
  bool has_drop_count = false;         // SO_RXQ_OVFL was attached
  int64_t stamped_ns = 0;              // SO_TIMESTAMPNS; 0: not attached
};

// The kernel sends IP_TOS as one byte and the others as a 32-bit integer.
uint32_t control_value(const cmsghdr* message) {
  uint32_t value = 0;
  if (message->cmsg_len >= CMSG_LEN(sizeof(value))) {
    std::memcpy(&value, CMSG_DATA(message), sizeof(value));
  } else if (message->cmsg_len >= CMSG_LEN(1)) {
    value = *CMSG_DATA(message);
  }
  return value;
}

int64_t stamp_of(const cmsghdr* message) {
  timespec time{};
  if (message->cmsg_len < CMSG_LEN(sizeof(time))) return 0;
  std::memcpy(&time, CMSG_DATA(message), sizeof(time));
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

bool is_control(const cmsghdr* message, int level, int type) {
  return message->cmsg_level == level && message->cmsg_type == type;
}

ControlValues decode_controls(msghdr& header) {
  ControlValues values;
  for (cmsghdr* message = CMSG_FIRSTHDR(&header); message != nullptr;
       message = CMSG_NXTHDR(&header, message)) {
    if (is_control(message, SOL_UDP, UDP_GRO)) {
      values.segment_bytes = control_value(message);
    } else if (is_control(message, IPPROTO_IP, IP_TOS) ||
               is_control(message, IPPROTO_IPV6, IPV6_TCLASS)) {
      values.ecn = static_cast<base::Ecn>(control_value(message) & 3);
    } else if (is_control(message, SOL_SOCKET, SO_RXQ_OVFL)) {
      values.drop_count = control_value(message);
      values.has_drop_count = true;
    } else if (is_control(message, SOL_SOCKET, SCM_TIMESTAMPNS)) {
      values.stamped_ns = stamp_of(message);
    }
  }
  return values;
}

}  // namespace

ReceiveBuffers::ReceiveBuffers(size_t count)
    : storage_(std::make_unique<uint8_t[]>(count * kBufferBytes)),
      names_(count),
      controls_(count),
      pieces_(count),
      headers_(count) {
  SF_CHECK(count >= 1 && count <= kBuffersMax);
  bursts_.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    pieces_[i] = {storage_.get() + i * kBufferBytes, kBufferBytes};
    msghdr& header = headers_[i].msg_hdr;
    header.msg_name = names_[i].data();
    header.msg_control = controls_[i].bytes;
    header.msg_iov = &pieces_[i];
    header.msg_iovlen = 1;
  }
}

std::span<mmsghdr> ReceiveBuffers::prepare() {
  bursts_.clear();
  for (mmsghdr& entry : headers_) {  // the kernel overwrote these with what it used
    entry.msg_len = 0;
    entry.msg_hdr.msg_namelen = NativeAddress::capacity();
    entry.msg_hdr.msg_controllen = kControlBytes;
    entry.msg_hdr.msg_flags = 0;
  }
  return headers_;
}

ReceiveOutcome ReceiveBuffers::decode(size_t received) {
  SF_CHECK(received <= count());
  ReceiveOutcome outcome;
  for (size_t i = 0; i < received; ++i) {
    msghdr& header = headers_[i].msg_hdr;
    const ControlValues controls = decode_controls(header);
    if (controls.has_drop_count) {
      outcome.drop_count = controls.drop_count;
      outcome.has_drop_count = true;
    }
    const size_t length = headers_[i].msg_len;
    if (header.msg_flags & MSG_TRUNC) {
      ++outcome.truncated;
    } else if (length == 0) {
      ++outcome.empty;
    } else {
      const size_t joined = controls.segment_bytes;
      const size_t segment_bytes = joined == 0 || joined > length ? length : joined;
      const base::Bytes bytes(storage_.get() + i * kBufferBytes, length);
      bursts_.push_back(
          {bytes, segment_bytes, from_native(names_[i].data()), controls.ecn, controls.stamped_ns});
    }
  }
  outcome.bursts = bursts_;
  return outcome;
}

}  // namespace securefabric::net
