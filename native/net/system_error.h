// An errno as a recoverable error.
#pragma once

#include <cerrno>
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

// The same for calls that every kernel has: where one is not permitted, a sandbox forbids it.
inline base::Error refusal(std::string action, int error_number) {
  base::Error error = system_error(std::move(action), error_number);
  if (error_number == EPERM || error_number == EACCES || error_number == ENOSYS) {
    error.message +=
        ". A sandbox of this process (seccomp, a container's profile) forbids the call; allow it";
  }
  return error;
}

}  // namespace securefabric::net
