// An errno as a recoverable error, and the file descriptor that closes itself.
#pragma once

#include <unistd.h>

#include <string>
#include <system_error>
#include <utility>

#include "base/result.h"

namespace securefabric::net {

// "bind 10.0.0.1:4000: Address already in use". `action` names what was tried and on what.
inline base::Error system_error(std::string action, int error_number,
                                base::ErrorCode code = base::ErrorCode::kSystem) {
  return {code, std::move(action) + ": " + std::generic_category().message(error_number)};
}

// Owns one descriptor; -1 when it owns none.
class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }

  int value() const { return fd_; }
  bool is_open() const { return fd_ >= 0; }

 private:
  int fd_ = -1;  // closed by the destructor
};

}  // namespace securefabric::net
