// Owns one file descriptor, which no forked child keeps: a worker that outlives its parent must not
// hold the parent's ports, or a job that starts again could not have them.
//
// All open descriptors of this kind stand in one list. A handler of fork() closes them in the
// child, and does nothing else; programs that are executed get none (CLOEXEC), nor do children that
// run no handlers but execute at once (vfork, posix_spawn). Threads: any.
#pragma once

#include <utility>

namespace securefabric::net {

class FileDescriptor {
 public:
  FileDescriptor() = default;
  // Takes what `make` returns, a descriptor or -1 and errno. No fork() comes in between.
  template <typename Make>
  static FileDescriptor open(Make make) {
    const Registration registration;
    return FileDescriptor(registration.add(make()));
  }
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  // Closes it, unless a fork has done so and its number may be somebody else's.
  ~FileDescriptor();

  int value() const { return fd_; }
  bool is_open() const { return fd_ >= 0; }

 private:
  // Holds the list while a descriptor is made.
  class Registration {
   public:
    Registration();
    ~Registration();
    Registration(const Registration&) = delete;
    Registration& operator=(const Registration&) = delete;
    int add(int fd) const;  // returns fd, and leaves errno alone
  };

  explicit FileDescriptor(int fd) : fd_(fd) {}

  int fd_ = -1;  // closed by the destructor
};

}  // namespace securefabric::net
