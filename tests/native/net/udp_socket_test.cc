#include "net/udp_socket.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <deque>
#include <utility>

#include "net/socket_fixture.h"

namespace securefabric::net {
namespace {

constexpr size_t kJumboSegment = 8972;  // what fits a 9,000-byte MTU

// Fails chosen calls as a NIC, a queue or a firewall would; everything else reaches the kernel.
class FlakyCalls : public SocketCalls {
 public:
  int segmented_error = 0;      // errno of every sendmsg that asks for segmentation
  int batched_error = 0;        // errno of every sendmmsg
  unsigned batch_limit = 1000;  // messages that one sendmmsg takes
  // errno of the next plain sendmsg calls; 0 lets one through
  mutable std::deque<int> single_errors;
  int receive_error = 0;            // errno of every recvmmsg
  mutable int segmented_calls = 0;  // sendmsg with UDP_SEGMENT, refused ones too
  mutable int batched_calls = 0;    // sendmmsg
  mutable int single_calls = 0;     // sendmsg without UDP_SEGMENT

  ssize_t sendmsg(int fd, const msghdr* message, int flags) const override {
    if (message->msg_controllen > 0) {
      ++segmented_calls;
      return segmented_error != 0 ? fail(segmented_error)
                                  : SocketCalls::sendmsg(fd, message, flags);
    }
    ++single_calls;
    const int error = single_errors.empty() ? 0 : single_errors.front();
    if (!single_errors.empty()) single_errors.pop_front();
    return error != 0 ? fail(error) : SocketCalls::sendmsg(fd, message, flags);
  }

  int sendmmsg(int fd, mmsghdr* messages, unsigned count, int flags) const override {
    ++batched_calls;
    if (batched_error != 0) return fail(batched_error);
    return SocketCalls::sendmmsg(fd, messages, std::min(count, batch_limit), flags);
  }

  int recvmmsg(int fd, mmsghdr* messages, unsigned count, int flags) const override {
    return receive_error != 0 ? fail(receive_error)
                              : SocketCalls::recvmmsg(fd, messages, count, flags);
  }

 private:
  static int fail(int error) {
    errno = error;
    return -1;
  }
};

UdpSocketOptions with_calls(const SocketCalls& calls) {
  UdpSocketOptions options;
  options.calls = &calls;
  return options;
}

UdpSocketOptions without_gro() {
  UdpSocketOptions options;
  options.use_gro = false;
  return options;
}

void expect_sent(const SendResult& result, size_t segments) {
  EXPECT_EQ(result.outcome, SendOutcome::kSent);
  EXPECT_EQ(result.segments_taken, segments);
  EXPECT_EQ(result.error_number, 0);
}

TEST(UdpSocket, bind__takes_a_free_port_and_closes_on_exec) {
  const UdpSocket socket = bind_or_die();
  EXPECT_NE(socket.local_address().port(), 0);
  EXPECT_TRUE(socket.local_address().is_loopback());
  EXPECT_TRUE(::fcntl(socket.fd(), F_GETFD) & FD_CLOEXEC);
  EXPECT_TRUE(::fcntl(socket.fd(), F_GETFL) & O_NONBLOCK);
}

TEST(UdpSocket, bind__reports_what_was_granted) {
  UdpSocketOptions options;
  options.receive_buffer_bytes = 64 * 1024;
  options.send_buffer_bytes = 96 * 1024;
  options.use_gso = false;
  options.use_gro = false;
  const UdpSocket socket = bind_or_die(options);
  EXPECT_EQ(socket.grants().receive_buffer_bytes, 64u * 1024);
  EXPECT_EQ(socket.grants().send_buffer_bytes, 96u * 1024);
  EXPECT_FALSE(socket.grants().has_gso);
  EXPECT_FALSE(socket.grants().has_gro);
}

TEST(UdpSocket, bind__names_an_address_that_is_taken_or_not_ours) {
  const UdpSocket first = bind_or_die();
  const auto taken = UdpSocket::bind(first.local_address());
  ASSERT_FALSE(taken.ok());
  EXPECT_EQ(taken.error().code, base::ErrorCode::kConfig);
  EXPECT_NE(taken.error().message.find(first.local_address().to_text()), std::string::npos);
  EXPECT_FALSE(UdpSocket::bind(any_port("192.0.2.1")).ok());  // TEST-NET-1
  EXPECT_FALSE(UdpSocket::bind(base::SocketAddress()).ok());
}

TEST(UdpSocket, move__leaves_one_owner) {
  UdpSocket first = bind_or_die();
  const int fd = first.fd();
  UdpSocket second = std::move(first);
  EXPECT_EQ(second.fd(), fd);
  UdpSocket receiver = bind_or_die();
  expect_sent(second.send_burst(receiver.local_address(), random_bytes(10, 1), 10), 1);
}

TEST(UdpSocket, send_burst__arrives_as_one_read_with_its_segment_size) {
  UdpSocket sender = bind_or_die();
  UdpSocket receiver = bind_or_die();
  if (!sender.grants().has_gso || !receiver.grants().has_gro) GTEST_SKIP() << "kernel too old";
  const auto burst = random_bytes(7 * kJumboSegment - 100, 2);
  expect_sent(sender.send_burst(receiver.local_address(), burst, kJumboSegment), 7);
  const auto received = receive_bytes(receiver, burst.size());
  ASSERT_EQ(received.size(), 1u);
  EXPECT_EQ(received[0].bytes, burst);
  EXPECT_EQ(received[0].segment_bytes, kJumboSegment);
  EXPECT_EQ(received[0].from, sender.local_address());
  EXPECT_EQ(sender.counters().send_calls, 1u);
  EXPECT_EQ(sender.counters().sent_segments, 7u);
  EXPECT_EQ(sender.send_mode(receiver.local_address()), SendMode::kSegmented);
}

TEST(UdpSocket, send_burst__without_gro_arrives_segment_by_segment) {
  UdpSocket sender = bind_or_die();
  UdpSocket receiver = bind_or_die(without_gro());
  const auto burst = random_bytes(4 * 1400 + 1, 3);
  expect_sent(sender.send_burst(receiver.local_address(), burst, 1400), 5);
  const auto received = receive_bytes(receiver, burst.size());
  ASSERT_EQ(received.size(), 5u);
  EXPECT_EQ(joined(received), burst);
  EXPECT_EQ(received[0].segment_bytes, 1400u);
  EXPECT_EQ(received[4].segment_bytes, 1u);
}

TEST(UdpSocket, send_burst__without_gso_sends_in_batches) {
  FlakyCalls calls;
  UdpSocketOptions options = with_calls(calls);
  options.use_gso = false;
  UdpSocket sender = bind_or_die(options);
  UdpSocket receiver = bind_or_die();
  const auto burst = random_bytes(40 * 100, 4);
  expect_sent(sender.send_burst(receiver.local_address(), burst, 100), 40);
  EXPECT_EQ(joined(receive_bytes(receiver, burst.size())), burst);
  EXPECT_EQ(calls.segmented_calls, 0);
  EXPECT_EQ(calls.batched_calls, 2);  // 32 and 8
}

TEST(UdpSocket, send_burst__splits_above_64_segments) {
  UdpSocket sender = bind_or_die();
  UdpSocket receiver = bind_or_die(without_gro());
  const auto burst = random_bytes(130 * 16, 5);
  expect_sent(sender.send_burst(receiver.local_address(), burst, 16), 130);
  EXPECT_EQ(joined(receive_bytes(receiver, burst.size())), burst);
  if (sender.grants().has_gso) {
    EXPECT_EQ(sender.counters().send_calls, 3u);
  }
}

TEST(UdpSocket, send_burst__splits_above_65507_bytes) {
  UdpSocket sender = bind_or_die();
  UdpSocket receiver = bind_or_die();
  const auto burst = random_bytes(15 * kJumboSegment, 6);
  expect_sent(sender.send_burst(receiver.local_address(), burst, kJumboSegment), 15);
  EXPECT_EQ(joined(receive_bytes(receiver, burst.size())), burst);
  if (sender.grants().has_gso) {
    EXPECT_EQ(sender.counters().send_calls, 3u);  // 7, 7, 1
  }
}

TEST(UdpSocket, send_burst__carries_the_largest_datagram_and_no_larger) {
  UdpSocket sender = bind_or_die();
  UdpSocket receiver = bind_or_die();
  const auto largest = random_bytes(UdpSocket::kSendBytesMax, 7);
  expect_sent(sender.send_burst(receiver.local_address(), largest, largest.size()), 1);
  const auto received = receive_bytes(receiver, largest.size());
  ASSERT_EQ(received.size(), 1u);
  EXPECT_EQ(received[0].segment_bytes, largest.size());

  const auto too_long = random_bytes(UdpSocket::kSendBytesMax + 1, 8);
  const SendResult result = sender.send_burst(receiver.local_address(), too_long, too_long.size());
  EXPECT_EQ(result.outcome, SendOutcome::kMessageTooLong);
  EXPECT_EQ(result.error_number, EMSGSIZE);
  EXPECT_EQ(result.segments_taken, 0u);
  EXPECT_EQ(sender.counters().send_too_long, 1u);
}

TEST(UdpSocket, send_burst__too_long_tells_how_far_it_came) {
  FlakyCalls calls;
  UdpSocketOptions options = with_calls(calls);
  UdpSocket sender = bind_or_die(options);
  UdpSocket receiver = bind_or_die();
  calls.segmented_error = EIO;
  calls.batched_error = EIO;
  calls.single_errors = {0, 0, EMSGSIZE};
  const auto burst = random_bytes(300, 9);
  const SendResult result = sender.send_burst(receiver.local_address(), burst, 100);
  EXPECT_EQ(result.outcome, SendOutcome::kMessageTooLong);
  EXPECT_EQ(result.segments_taken, 2u);
}

class RefusedGso : public ::testing::TestWithParam<int> {};

TEST_P(RefusedGso, send_burst__falls_back_to_batches_with_the_same_burst) {
  FlakyCalls calls;
  UdpSocket sender = bind_or_die(with_calls(calls));
  UdpSocket receiver = bind_or_die();
  if (!sender.grants().has_gso) GTEST_SKIP() << "kernel too old";
  calls.segmented_error = GetParam();
  const auto burst = random_bytes(5 * 1000 + 7, 10);
  expect_sent(sender.send_burst(receiver.local_address(), burst, 1000), 6);
  EXPECT_EQ(joined(receive_bytes(receiver, burst.size())), burst);
  EXPECT_EQ(sender.counters().gso_refused, 1u);
  EXPECT_EQ(sender.send_mode(receiver.local_address()), SendMode::kBatched);

  // Remembered: the next burst does not ask again, not even on another port.
  UdpSocket other_port = bind_or_die();
  expect_sent(sender.send_burst(other_port.local_address(), burst, 1000), 6);
  EXPECT_EQ(calls.segmented_calls, 1);
  EXPECT_EQ(calls.batched_calls, 2);
  // Another address starts afresh.
  EXPECT_EQ(sender.send_mode(any_port("127.0.0.2")), SendMode::kSegmented);
}

INSTANTIATE_TEST_SUITE_P(Errors, RefusedGso,
                         ::testing::Values(EIO, EINVAL, ENOPROTOOPT, EOPNOTSUPP));

TEST(UdpSocket, send_burst__falls_back_to_single_messages) {
  FlakyCalls calls;
  calls.segmented_error = EINVAL;
  calls.batched_error = ENOSYS;
  UdpSocket sender = bind_or_die(with_calls(calls));
  UdpSocket receiver = bind_or_die();
  const auto burst = random_bytes(3 * 1000, 11);
  expect_sent(sender.send_burst(receiver.local_address(), burst, 1000), 3);
  EXPECT_EQ(joined(receive_bytes(receiver, burst.size())), burst);
  EXPECT_EQ(calls.single_calls, 3);
  EXPECT_EQ(sender.counters().batch_refused, 1u);
  EXPECT_EQ(sender.send_mode(receiver.local_address()), SendMode::kSingle);
}

TEST(UdpSocket, send_burst__does_not_blame_gso_for_a_segment_beyond_the_mtu) {
  FlakyCalls calls;
  calls.segmented_error = EINVAL;  // what kernels before 6.10 say of a segment above the MTU
  calls.batched_error = EMSGSIZE;
  UdpSocket sender = bind_or_die(with_calls(calls));
  UdpSocket receiver = bind_or_die();
  if (!sender.grants().has_gso) GTEST_SKIP() << "kernel too old";
  const auto burst = random_bytes(3 * 1000, 12);
  const SendResult result = sender.send_burst(receiver.local_address(), burst, 1000);
  EXPECT_EQ(result.outcome, SendOutcome::kMessageTooLong);
  EXPECT_EQ(sender.send_mode(receiver.local_address()), SendMode::kSegmented);
}

TEST(UdpSocket, send_burst__continues_after_a_short_batch) {
  FlakyCalls calls;
  calls.batch_limit = 2;
  UdpSocketOptions options = with_calls(calls);
  options.use_gso = false;
  UdpSocket sender = bind_or_die(options);
  UdpSocket receiver = bind_or_die();
  const auto burst = random_bytes(6 * 100 + 1, 13);
  expect_sent(sender.send_burst(receiver.local_address(), burst, 100), 7);
  EXPECT_EQ(joined(receive_bytes(receiver, burst.size())), burst);
}

TEST(UdpSocket, send_burst__would_block_tells_how_many_segments_were_taken) {
  FlakyCalls calls;
  calls.segmented_error = EIO;
  calls.batched_error = EIO;
  calls.single_errors = {0, EAGAIN};
  UdpSocket sender = bind_or_die(with_calls(calls));
  UdpSocket receiver = bind_or_die();
  const auto burst = random_bytes(3 * 1000, 14);
  const base::SocketAddress to = receiver.local_address();
  const SendResult result = sender.send_burst(to, burst, 1000);
  EXPECT_EQ(result.outcome, SendOutcome::kWouldBlock);
  EXPECT_EQ(result.segments_taken, 1u);
  EXPECT_EQ(sender.counters().send_would_block, 1u);
  const base::Bytes rest = base::Bytes(burst).subspan(result.segments_taken * 1000);
  expect_sent(sender.send_burst(to, rest, 1000), 2);
  EXPECT_EQ(joined(receive_bytes(receiver, burst.size())), burst);
}

TEST(UdpSocket, send_burst__counts_errors_of_a_destination_as_loss) {
  for (const int error : {ENETUNREACH, EHOSTUNREACH, ECONNREFUSED, EPERM, EACCES, ENOBUFS}) {
    FlakyCalls calls;
    calls.segmented_error = error;
    UdpSocket sender = bind_or_die(with_calls(calls));
    if (!sender.grants().has_gso) GTEST_SKIP() << "kernel too old";
    const SendResult result =
        sender.send_burst(any_port("127.0.0.1").with_port(9), random_bytes(200, 15), 100);
    EXPECT_EQ(result.outcome, SendOutcome::kUnreachable) << error;
    EXPECT_EQ(result.error_number, error);
    EXPECT_EQ(sender.counters().send_unreachable, 1u);
    EXPECT_EQ(sender.counters().gso_refused, 0u);
  }
}

TEST(UdpSocket, send_burst__other_family_or_no_port_is_unreachable) {
  UdpSocket sender = bind_or_die();
  const auto bytes = random_bytes(10, 16);
  EXPECT_EQ(sender.send_burst(any_port("::1").with_port(9), bytes, 10).outcome,
            SendOutcome::kUnreachable);
  EXPECT_EQ(sender.send_burst(any_port("127.0.0.1"), bytes, 10).outcome, SendOutcome::kUnreachable);
  EXPECT_EQ(sender.send_burst(base::SocketAddress(), bytes, 10).outcome, SendOutcome::kUnreachable);
}

TEST(UdpSocket, send_burst__closed_descriptor_is_fatal) {
  FlakyCalls calls;
  calls.single_errors = {EBADF};
  UdpSocket sender = bind_or_die(with_calls(calls));
  EXPECT_EQ(sender.send_burst(sender.local_address(), random_bytes(10, 17), 10).outcome,
            SendOutcome::kFatal);
}

TEST(UdpSocket, receive__marks_cross_loopback) {
  UdpSocket sender = bind_or_die();
  UdpSocket receiver = bind_or_die();
  if (!sender.grants().has_ecn || !receiver.grants().has_ecn) GTEST_SKIP() << "no ECN here";
  const base::SocketAddress to = receiver.local_address();
  expect_sent(sender.send_burst(to, random_bytes(10, 18), 10), 1);
  EXPECT_EQ(receive_bytes(receiver, 10).at(0).ecn, base::Ecn::kEct0);
  for (const int marks : {0, 1, 3}) {
    ASSERT_EQ(::setsockopt(sender.fd(), IPPROTO_IP, IP_TOS, &marks, sizeof(marks)), 0);
    expect_sent(sender.send_burst(to, random_bytes(10, 19), 10), 1);
    EXPECT_EQ(receive_bytes(receiver, 10).at(0).ecn, static_cast<base::Ecn>(marks));
  }
}

TEST(UdpSocket, receive__comes_back_empty_when_nothing_waits) {
  UdpSocket socket = bind_or_die();
  ReceiveBuffers buffers;
  EXPECT_TRUE(socket.receive(buffers).value().empty());
  EXPECT_EQ(socket.counters().receive_calls, 1u);
  EXPECT_EQ(socket.counters().receive_errors, 0u);
}

TEST(UdpSocket, receive__takes_no_more_than_the_buffers_per_call) {
  UdpSocket sender = bind_or_die();
  UdpSocket receiver = bind_or_die(without_gro());
  expect_sent(sender.send_burst(receiver.local_address(), random_bytes(500, 20), 100), 5);
  ReceiveBuffers buffers(2);
  std::vector<size_t> reads;
  const base::Instant deadline = now() + kPatience;
  for (size_t total = 0; total < 5 && now() < deadline;) {
    const auto bursts = receiver.receive(buffers);
    if (bursts.value().empty()) continue;
    reads.push_back(bursts.value().size());
    total += bursts.value().size();
  }
  for (const size_t count : reads) EXPECT_LE(count, 2u);
  EXPECT_EQ(receiver.counters().received_bursts, 5u);
}

TEST(UdpSocket, receive__drops_and_counts_empty_datagrams) {
  UdpSocket sender = bind_or_die();
  UdpSocket receiver = bind_or_die();
  const NativeAddress to(receiver.local_address());
  ASSERT_EQ(::sendto(sender.fd(), nullptr, 0, 0, to.data(), to.size()), 0);
  expect_sent(sender.send_burst(receiver.local_address(), random_bytes(5, 21), 5), 1);
  EXPECT_EQ(receive_bytes(receiver, 5).size(), 1u);
  EXPECT_EQ(receiver.counters().receive_empty, 1u);
}

TEST(UdpSocket, receive__counts_what_its_full_buffer_dropped) {
  UdpSocketOptions small;
  small.receive_buffer_bytes = 16 * 1024;
  UdpSocket sender = bind_or_die();
  UdpSocket receiver = bind_or_die(small);
  if (!receiver.grants().has_drop_count) GTEST_SKIP() << "kernel too old";
  const base::SocketAddress to = receiver.local_address();
  constexpr int kFlood = 200;
  for (int i = 0; i < kFlood; ++i) {
    expect_sent(sender.send_burst(to, random_bytes(1000, 22), 1000), 1);
  }
  ReceiveBuffers buffers;
  while (!receiver.receive(buffers).value().empty()) {
  }
  // The count travels with the next datagram that is queued.
  expect_sent(sender.send_burst(to, random_bytes(10, 23), 10), 1);
  receive_bytes(receiver, 10);
  const SocketCounters& counters = receiver.counters();
  EXPECT_GT(counters.kernel_drops, 0u);
  EXPECT_EQ(counters.received_bursts + counters.kernel_drops, uint64_t{kFlood} + 1);
}

TEST(UdpSocket, receive__survives_errors_that_pass_and_reports_those_that_stay) {
  FlakyCalls calls;
  UdpSocket socket = bind_or_die(with_calls(calls));
  ReceiveBuffers buffers;
  for (const int error : {ECONNREFUSED, EHOSTUNREACH, ENOMEM}) {
    calls.receive_error = error;
    EXPECT_TRUE(socket.receive(buffers).value().empty());
  }
  EXPECT_EQ(socket.counters().receive_errors, 3u);
  for (const int error : {EBADF, EPERM, EACCES, ENOSYS, EOPNOTSUPP}) {
    calls.receive_error = error;
    const auto received = socket.receive(buffers);
    ASSERT_FALSE(received.ok()) << "it would come again at once, without end: " << error;
    EXPECT_EQ(received.error().code, base::ErrorCode::kSystem);
    EXPECT_NE(received.error().message.find("UDP socket 127.0.0.1:"), std::string::npos);
  }
}

TEST(UdpSocket, send_burst__does_without_calls_that_a_sandbox_forbids) {
  FlakyCalls calls;
  UdpSocketOptions options = with_calls(calls);
  options.use_gso = false;
  UdpSocket sender = bind_or_die(options);
  UdpSocket receiver = bind_or_die();
  calls.batched_error = EPERM;
  const auto burst = random_bytes(3 * 1200, 25);
  expect_sent(sender.send_burst(receiver.local_address(), burst, 1200), 3);
  EXPECT_EQ(sender.send_mode(receiver.local_address()), SendMode::kSingle);
  EXPECT_EQ(joined(receive_bytes(receiver, burst.size())), burst);
  calls.single_errors = {EPERM};  // a firewall's, which says nothing about a mode
  EXPECT_EQ(sender.send_burst(receiver.local_address(), burst, 1200).outcome,
            SendOutcome::kUnreachable);
}

TEST(UdpSocket, send_burst__crosses_ipv6_loopback) {
  if (!UdpSocket::bind(any_port("::1")).ok()) GTEST_SKIP() << "no IPv6 loopback here";
  UdpSocket sender = bind_or_die({}, "::1");
  UdpSocket receiver = bind_or_die({}, "::1");
  const auto burst = random_bytes(3 * 1200 + 5, 24);
  expect_sent(sender.send_burst(receiver.local_address(), burst, 1200), 4);
  const auto received = receive_bytes(receiver, burst.size());
  EXPECT_EQ(joined(received), burst);
  EXPECT_EQ(received[0].from, sender.local_address());
  EXPECT_EQ(received[0].segment_bytes,
            receiver.grants().has_gro ? 1200u : received[0].bytes.size());
  if (receiver.grants().has_ecn) {
    EXPECT_EQ(received[0].ecn, base::Ecn::kEct0);
  }
}

}  // namespace
}  // namespace securefabric::net
