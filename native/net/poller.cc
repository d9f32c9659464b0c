#include "net/poller.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <cerrno>
#include <limits>
#include <utility>

#include "base/check.h"
#include "net/system_error.h"

namespace securefabric::net {
namespace {

// Tokens of the poller's own descriptors, out of the way of the caller's.
constexpr uint32_t kEventToken = std::numeric_limits<uint32_t>::max();
constexpr uint32_t kTimerToken = kEventToken - 1;

bool add_internal(int epoll, int fd, uint32_t token) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u32 = token;
  return ::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0;
}

ReadySocket describe(const epoll_event& event) {
  // A pending error is fetched by either direction's next call.
  const bool has_error = (event.events & (EPOLLERR | EPOLLHUP)) != 0;
  return {event.data.u32, has_error || (event.events & EPOLLIN) != 0,
          has_error || (event.events & EPOLLOUT) != 0};
}

}  // namespace

base::Result<Poller> Poller::make() {
  auto epoll = FileDescriptor::open([] { return ::epoll_create1(EPOLL_CLOEXEC); });
  if (!epoll.is_open()) return refusal("epoll_create1", errno);
  auto event = FileDescriptor::open([] { return ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); });
  if (!event.is_open()) return refusal("eventfd", errno);
  auto timer = FileDescriptor::open(
      [] { return ::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK); });
  if (!timer.is_open()) return refusal("timerfd_create", errno);
  if (!add_internal(epoll.value(), event.value(), kEventToken) ||
      !add_internal(epoll.value(), timer.value(), kTimerToken)) {
    return refusal("epoll_ctl", errno);
  }
  return Poller(std::move(epoll), std::move(event), std::move(timer));
}

Poller::Poller(FileDescriptor epoll, FileDescriptor event, FileDescriptor timer)
    : epoll_(std::move(epoll)), event_(std::move(event)), timer_(std::move(timer)) {}

base::Status Poller::add(int fd, uint32_t token) {
  return control(EPOLL_CTL_ADD, fd, EPOLLIN, token);
}

base::Status Poller::watch_writable(int fd, uint32_t token, bool is_wanted) {
  const uint32_t writable = is_wanted ? uint32_t{EPOLLOUT} : 0;
  return control(EPOLL_CTL_MOD, fd, EPOLLIN | writable, token);
}

base::Status Poller::remove(int fd) {
  return control(EPOLL_CTL_DEL, fd, 0, 0);
}

base::Status Poller::control(int operation, int fd, uint32_t events, uint32_t token) {
  SF_CHECK(token < kTimerToken);
  epoll_event event{};
  event.events = events;
  event.data.u32 = token;
  if (::epoll_ctl(epoll_.value(), operation, fd, &event) != 0) {
    return refusal("epoll_ctl", errno);
  }
  return base::ok_status();
}

// Setting the timer also forgets that it fired, so it never has to be read.
base::Status Poller::arm_timer(base::Duration timeout) {
  const bool is_endless = timeout >= base::Duration::forever();
  if (is_endless && !is_timer_armed_) return base::ok_status();
  itimerspec setting{};  // all zero disarms
  if (!is_endless) {
    constexpr int64_t kNanosPerSecond = 1'000'000'000;
    setting.it_value.tv_sec = timeout.nanos() / kNanosPerSecond;
    setting.it_value.tv_nsec = timeout.nanos() % kNanosPerSecond;
  }
  if (::timerfd_settime(timer_.value(), 0, &setting, nullptr) != 0) {
    return refusal("timerfd_settime", errno);
  }
  is_timer_armed_ = !is_endless;
  return base::ok_status();
}

base::Result<PollResult> Poller::wait(base::Duration timeout) {
  const bool only_looks = timeout <= base::Duration();
  if (!only_looks) {
    if (const base::Status armed = arm_timer(timeout); !armed.ok()) return armed.error();
  }
  std::array<epoll_event, kReadyMax> events;  // the kernel writes what it reports
  const int count = ::epoll_wait(epoll_.value(), events.data(), static_cast<int>(events.size()),
                                 only_looks ? 0 : -1);
  if (count < 0 && errno != EINTR) return refusal("epoll_wait", errno);

  PollResult result;
  size_t ready_count = 0;
  for (int i = 0; i < count; ++i) {
    const epoll_event& event = events[static_cast<size_t>(i)];
    if (event.data.u32 == kEventToken) {
      uint64_t wakes = 0;  // one read takes all of them
      result.was_woken = ::read(event_.value(), &wakes, sizeof(wakes)) == sizeof(wakes);
    } else if (event.data.u32 != kTimerToken) {
      ready_[ready_count++] = describe(event);
    }
  }
  result.ready = std::span<const ReadySocket>(ready_).first(ready_count);
  return result;
}

void Poller::wake() const {
  const uint64_t one = 1;
  // Fails only when 2^64 - 2 wake-ups are pending, and then the waiter is woken anyway.
  [[maybe_unused]] const ssize_t written = ::write(event_.value(), &one, sizeof(one));
}

}  // namespace securefabric::net
