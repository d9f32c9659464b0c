// How a failure of the core crosses into torch: as c10::DistBackendError, whose message begins with
// the name of a class of securefabric/errors.py, so that Python can tell failures apart.
#pragma once

#include <exception>
#include <string>

#include "base/result.h"

namespace securefabric::torch_room {

// "PeerLost: rank 3 ..."; an error that already names its class stays as it is.
std::string message_of(const base::Error& error);

std::exception_ptr make_exception(const base::Error& error);

[[noreturn]] void throw_error(const base::Error& error);

// The value, or the error thrown.
template <typename T>
T value_or_throw(base::Result<T> result) {
  if (!result) throw_error(result.error());
  return std::move(result).value();
}

}  // namespace securefabric::torch_room
