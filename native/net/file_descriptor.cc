#include "net/file_descriptor.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <mutex>
#include <vector>

#include "base/check.h"

namespace securefabric::net {
namespace {

// The descriptors that are open. Its lock is held across fork(), so that the child finds the list
// whole; nothing else is locked meanwhile but by other handlers of fork(), which do not come here.
class OpenDescriptors {
 public:
  // Never destroyed: descriptors may outlive any static.
  static OpenDescriptors& instance() {
    static OpenDescriptors* const descriptors = new OpenDescriptors;
    return *descriptors;
  }

  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

  // Only while locked.
  void add(int fd) { open_.push_back(fd); }
  bool remove(int fd) {
    const auto at = std::find(open_.begin(), open_.end(), fd);
    if (at == open_.end()) return false;
    *at = open_.back();
    open_.pop_back();
    return true;
  }

 private:
  OpenDescriptors() {
    const int error = pthread_atfork([] { instance().lock(); }, [] { instance().unlock(); },
                                     [] { instance().after_fork_in_child(); });
    SF_CHECK(error == 0);
  }

  // Other threads are gone, whatever they held: close() and nothing that needs a lock or memory.
  // What the parent has in an epoll set stays there, since the parent has it open.
  void after_fork_in_child() {
    for (const int fd : open_) ::close(fd);
    open_.clear();
    unlock();
  }

  std::mutex mutex_;       // guards the list
  std::vector<int> open_;  // in no order
};

}  // namespace

FileDescriptor::Registration::Registration() {
  OpenDescriptors::instance().lock();
}

FileDescriptor::Registration::~Registration() {
  OpenDescriptors::instance().unlock();
}

int FileDescriptor::Registration::add(int fd) const {
  const int error_number = errno;
  if (fd >= 0) OpenDescriptors::instance().add(fd);
  errno = error_number;
  return fd;
}

FileDescriptor::~FileDescriptor() {
  if (fd_ < 0) return;
  const std::lock_guard<OpenDescriptors> lock(OpenDescriptors::instance());
  if (OpenDescriptors::instance().remove(fd_)) ::close(fd_);
}

}  // namespace securefabric::net
