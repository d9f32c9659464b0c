#include "net/file_descriptor.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "net/socket_fixture.h"

namespace securefabric::net {
namespace {

FileDescriptor make_event() {
  return FileDescriptor::open([] { return ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); });
}

bool is_open(int fd) {
  return ::fcntl(fd, F_GETFD) >= 0;
}

// What the child says; it may do little more than ask the kernel.
bool is_true_in_forked_child(const std::function<bool()>& what) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(what() ? 0 : 1);
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

TEST(FileDescriptor, destructor__closes) {
  int fd = -1;
  {
    const FileDescriptor event = make_event();
    fd = event.value();
    EXPECT_TRUE(is_open(fd));
  }
  EXPECT_FALSE(is_open(fd));
}

TEST(FileDescriptor, open__leaves_errno_to_its_caller) {
  const auto none = FileDescriptor::open([] {
    errno = EMFILE;
    return -1;
  });
  EXPECT_EQ(errno, EMFILE);
  EXPECT_FALSE(none.is_open());
}

TEST(FileDescriptor, move__leaves_one_owner) {
  FileDescriptor first = make_event();
  const int fd = first.value();
  {
    const FileDescriptor second = std::move(first);
    EXPECT_FALSE(first.is_open());
    EXPECT_EQ(second.value(), fd);
  }
  EXPECT_FALSE(is_open(fd));
}

TEST(FileDescriptor, fork__leaves_the_child_nothing) {
  const UdpSocket socket = bind_or_die();
  const FileDescriptor event = make_event();
  EXPECT_TRUE(is_true_in_forked_child(
      [&] { return !is_open(socket.fd()) && !is_open(event.value()) && is_open(STDERR_FILENO); }));
  EXPECT_TRUE(is_open(socket.fd())) << "the parent's own";
}

// A number that the child has used again is not closed by the parent's object.
TEST(FileDescriptor, fork__a_number_used_again_is_the_childs) {
  auto event = std::make_unique<FileDescriptor>(make_event());
  EXPECT_TRUE(is_true_in_forked_child([&] {
    const int again = ::dup2(STDERR_FILENO, event->value());
    event.reset();
    return is_open(again);
  }));
}

// What waits in the parent's epoll set is of the open file, which the child must not touch.
TEST(FileDescriptor, fork__the_parent_goes_on_polling) {
  UdpSocket from = bind_or_die();
  UdpSocket to = bind_or_die();
  Poller poller = Poller::make().value();
  ASSERT_TRUE(poller.add(to.fd(), 7).ok());
  EXPECT_TRUE(is_true_in_forked_child([] { return true; }));
  const auto bytes = random_bytes(10, 1);
  ASSERT_EQ(from.send_burst(to.local_address(), bytes, 10).outcome, SendOutcome::kSent);
  const auto result = poller.wait(kPatience);
  ASSERT_TRUE(result.ok());
  ASSERT_EQ(result.value().ready.size(), 1u);
  EXPECT_EQ(result.value().ready[0].token, 7u);
}

TEST(FileDescriptor, fork__a_port_is_free_again_though_a_child_lives) {
  base::SocketAddress address;
  std::array<int, 2> up{};    // the child is past fork()
  std::array<int, 2> down{};  // closed when the child may end
  ASSERT_EQ(::pipe(up.data()) + ::pipe(down.data()), 0);
  pid_t child = -1;
  {
    const UdpSocket socket = bind_or_die();
    address = socket.local_address();
    child = ::fork();
    if (child == 0) {
      ::close(down[1]);
      char byte = 0;
      const bool has_told = ::write(up[1], &byte, 1) == 1;
      ::_exit(has_told && ::read(down[0], &byte, 1) == 0 ? 0 : 1);
    }
    char byte = 0;
    ASSERT_EQ(::read(up[0], &byte, 1), 1);
  }
  const auto again = UdpSocket::bind(address);
  EXPECT_TRUE(again.ok()) << (again.ok() ? "" : again.error().message);
  ::close(down[1]);
  EXPECT_EQ(::waitpid(child, nullptr, 0), child);
  for (const int fd : {up[0], up[1], down[0]}) ::close(fd);
}

// Threads that open and close while another one forks: the child still finds the list whole.
TEST(FileDescriptor, fork__beside_other_threads) {
  std::atomic<bool> is_over{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&] {
      while (!is_over.load()) make_event();
    });
  }
  const FileDescriptor kept = make_event();
  for (int i = 0; i < 50; ++i) {
    ASSERT_TRUE(is_true_in_forked_child([&] { return !is_open(kept.value()); }));
  }
  is_over.store(true);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace securefabric::net
