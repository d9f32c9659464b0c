// Result<T>: a recoverable failure as a value. It becomes an exception only at the Python border.
#pragma once

#include <string>
#include <utility>
#include <variant>

#include "base/check.h"

namespace securefabric::base {

// What a caller can do about a failure; the Python border maps each to one exception class.
enum class ErrorCode {
  kConfig,    // an option, key file or address is unusable: fix it and start again
  kAuth,      // a peer could not prove that it belongs to the job
  kMismatch,  // ranks disagree about an operation
  kTimeout,   // nothing was wrong but the time
  kPeerLost,  // a peer died, left or cannot be reached
  kAborted,   // this rank or another gave the group up
  kLimit,     // a bound of limits.h was reached
  kForked,    // this process is a forked copy: it may not use the keys
  kSystem,    // the operating system refused
};

const char* error_code_name(ErrorCode code);

struct Error {
  ErrorCode code = ErrorCode::kSystem;  // the class of failure
  std::string message;                  // names cause, rank and fix; holds no secret

  bool operator==(const Error&) const = default;
};

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::move(value)) {}      // NOLINT: implicit by design
  Result(Error error) : state_(std::move(error)) {}  // NOLINT: implicit by design

  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }
  const Error& error() const {
    SF_CHECK(!ok());
    return std::get<1>(state_);
  }
  T& value() & {
    SF_CHECK_MSG(ok(), error().message);
    return std::get<0>(state_);
  }
  const T& value() const& {
    SF_CHECK_MSG(ok(), error().message);
    return std::get<0>(state_);
  }
  T&& value() && {
    SF_CHECK_MSG(ok(), error().message);
    return std::get<0>(std::move(state_));
  }

 private:
  std::variant<T, Error> state_;
};

// A Result that carries nothing but success.
struct Unit {};
using Status = Result<Unit>;
inline Status ok_status() {
  return Unit{};
}

}  // namespace securefabric::base
