#include "net/receive_buffers.h"

#include <gtest/gtest.h>
#include <netinet/udp.h>

#include <cstring>
#include <utility>

namespace securefabric::net {
namespace {

// Plays the kernel: fills one header as recvmmsg would.
class FakeRead {
 public:
  FakeRead(mmsghdr& entry, size_t length) : entry_(entry) {
    entry.msg_len = static_cast<unsigned>(length);
    const NativeAddress from(base::SocketAddress::ipv4({10, 0, 0, 1}, 4000));
    std::memcpy(entry.msg_hdr.msg_name, from.data(), from.size());
    entry.msg_hdr.msg_controllen = 0;
  }

  FakeRead& control(int level, int type, const void* value, size_t size) {
    msghdr& header = entry_.msg_hdr;
    auto* message = reinterpret_cast<cmsghdr*>(static_cast<uint8_t*>(header.msg_control) +
                                               header.msg_controllen);
    message->cmsg_level = level;
    message->cmsg_type = type;
    message->cmsg_len = CMSG_LEN(size);
    std::memcpy(CMSG_DATA(message), value, size);
    header.msg_controllen += CMSG_SPACE(size);
    return *this;
  }

 private:
  mmsghdr& entry_;  // the header being filled
};

TEST(ReceiveBuffers, decode__reads_every_control_message) {
  ReceiveBuffers buffers(2);
  const auto headers = buffers.prepare();
  const int segment = 1400;
  const uint8_t tos = 0xFF;
  const uint32_t drops = 7;
  FakeRead(headers[0], 3000)
      .control(IPPROTO_IP, IP_TOS, &tos, sizeof(tos))
      .control(SOL_UDP, UDP_GRO, &segment, sizeof(segment))
      .control(SOL_SOCKET, SO_RXQ_OVFL, &drops, sizeof(drops));
  FakeRead second(headers[1], 10);
  const ReceiveOutcome outcome = buffers.decode(2);
  ASSERT_EQ(outcome.bursts.size(), 2u);
  EXPECT_EQ(outcome.bursts[0].bytes.size(), 3000u);
  EXPECT_EQ(outcome.bursts[0].segment_bytes, 1400u);
  EXPECT_EQ(outcome.bursts[0].ecn, base::Ecn::kCe);
  EXPECT_EQ(outcome.bursts[0].from, base::SocketAddress::ipv4({10, 0, 0, 1}, 4000));
  EXPECT_TRUE(outcome.has_drop_count);
  EXPECT_EQ(outcome.drop_count, 7u);
  EXPECT_EQ(outcome.bursts[1].segment_bytes, 10u);
  EXPECT_EQ(outcome.bursts[1].ecn, base::Ecn::kNotEct);
}

TEST(ReceiveBuffers, decode__segment_size_is_never_zero_nor_above_the_length) {
  for (const int claimed : {0, 101, 65'536, -1}) {
    ReceiveBuffers buffers(1);
    FakeRead(buffers.prepare()[0], 100).control(SOL_UDP, UDP_GRO, &claimed, sizeof(claimed));
    EXPECT_EQ(buffers.decode(1).bursts[0].segment_bytes, 100u) << claimed;
  }
}

TEST(ReceiveBuffers, decode__drops_truncated_and_empty_reads) {
  ReceiveBuffers buffers(3);
  const auto headers = buffers.prepare();
  FakeRead truncated(headers[0], 100);
  headers[0].msg_hdr.msg_flags = MSG_TRUNC;
  FakeRead empty(headers[1], 0);
  FakeRead good(headers[2], 1);
  const ReceiveOutcome outcome = buffers.decode(3);
  EXPECT_EQ(outcome.bursts.size(), 1u);
  EXPECT_EQ(outcome.truncated, 1u);
  EXPECT_EQ(outcome.empty, 1u);
  EXPECT_FALSE(outcome.has_drop_count);
}

TEST(ReceiveBuffers, prepare__resets_what_the_kernel_changed) {
  ReceiveBuffers buffers(1);
  mmsghdr& entry = buffers.prepare()[0];
  const size_t room = entry.msg_hdr.msg_controllen;
  FakeRead used(entry, 5);
  entry.msg_hdr.msg_namelen = 1;
  entry.msg_hdr.msg_flags = MSG_TRUNC;
  buffers.prepare();
  EXPECT_EQ(entry.msg_hdr.msg_controllen, room);
  EXPECT_EQ(entry.msg_hdr.msg_namelen, NativeAddress::capacity());
  EXPECT_EQ(entry.msg_hdr.msg_flags, 0);
  EXPECT_EQ(entry.msg_len, 0u);
}

TEST(ReceiveBuffers, move__keeps_the_headers_valid) {
  ReceiveBuffers first(2);
  ReceiveBuffers second = std::move(first);
  const auto headers = second.prepare();
  std::memset(headers[1].msg_hdr.msg_iov->iov_base, 0xAB, 4);
  FakeRead ignored(headers[0], 1);
  FakeRead read(headers[1], 4);
  EXPECT_EQ(second.decode(2).bursts[1].bytes[3], 0xAB);
}

}  // namespace
}  // namespace securefabric::net
