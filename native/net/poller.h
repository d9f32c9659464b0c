// Waits for sockets, for a wake-up from another thread, or for a time: one epoll set per engine.
//
// The timeout is a timerfd because epoll_wait counts in milliseconds and epoll_pwait2 adds the
// thread's timer slack (50 us): pacing needs better than either.
// Threads: `wake` may be called from any thread at any time while the object lives; everything else
// only by whoever drives the engine.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/result.h"
#include "base/time.h"
#include "net/file_descriptor.h"

namespace securefabric::net {

struct ReadySocket {
  uint32_t token = 0;        // as given to `add`
  bool is_readable = false;  // `receive` will not come back empty, or will tell an error
  bool is_writable = false;  // only when asked for by `watch_writable`
};

struct PollResult {
  std::span<const ReadySocket> ready;  // lives in the Poller until its next `wait`
  bool was_woken = false;              // at least one `wake` since the last result that said so
};

class Poller {
 public:
  // Sockets that one `wait` reports; the others stay ready and come with the next.
  static constexpr size_t kReadyMax = 64;

  static base::Result<Poller> make();

  // Watches `fd` for readability; the caller keeps it open until `remove`. Each `token` is the
  // caller's; it must not be one of the two highest 32-bit values.
  base::Status add(int fd, uint32_t token);
  // Also report when `fd` can be written, or stop doing so: only while a send would block.
  base::Status watch_writable(int fd, uint32_t token, bool is_wanted);
  base::Status remove(int fd);

  // Returns when a socket is ready, `wake` was called, or `timeout` passed, whichever is first.
  // Zero or less only looks; Duration::forever() has no limit. It may return early with nothing (a
  // signal): callers keep their own deadline. All wake-ups until now are taken by this call.
  base::Result<PollResult> wait(base::Duration timeout);

  // Ends the current or the next `wait`. What the caller wrote before is visible to the waiter
  // after. Any thread; async-signal-safe; never blocks.
  void wake() const;

 private:
  Poller(FileDescriptor epoll, FileDescriptor event, FileDescriptor timer);

  base::Status control(int operation, int fd, uint32_t events, uint32_t token);
  base::Status arm_timer(base::Duration timeout);

  FileDescriptor epoll_;         // holds the two below and the sockets
  FileDescriptor event_;         // eventfd: counts the wake-ups not yet taken
  FileDescriptor timer_;         // timerfd of the current `wait`
  bool is_timer_armed_ = false;  // may fire: has to be disarmed before an endless wait
  std::array<ReadySocket, kReadyMax> ready_{};  // what the last `wait` reported
};

}  // namespace securefabric::net
