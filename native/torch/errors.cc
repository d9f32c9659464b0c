#include "torch/errors.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cctype>

namespace securefabric::torch_room {

using base::Error;
using base::ErrorCode;

namespace {

const char* class_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::kConfig: return "ConfigError";
    case ErrorCode::kAuth: return "AuthError";
    case ErrorCode::kMismatch: return "OperationMismatch";
    case ErrorCode::kTimeout: return "OperationTimeout";
    case ErrorCode::kPeerLost: return "PeerLost";
    case ErrorCode::kAborted: return "GroupAborted";
    case ErrorCode::kForked: return "ForkError";
    case ErrorCode::kLimit:
    case ErrorCode::kSystem: break;
  }
  return "SecureFabricError";
}

bool names_its_class(const std::string& message) {
  const size_t colon = message.find(": ");
  if (colon == std::string::npos || colon == 0) return false;
  return std::isupper(static_cast<unsigned char>(message[0])) != 0 &&
         std::all_of(message.begin(), message.begin() + static_cast<ptrdiff_t>(colon),
                     [](unsigned char c) { return std::isalnum(c) != 0; });
}

c10::DistBackendError to_torch(const Error& error) {
  return {{__func__, __FILE__, static_cast<uint32_t>(__LINE__)}, message_of(error)};
}

}  // namespace

std::string message_of(const Error& error) {
  if (names_its_class(error.message)) return error.message;
  return std::string(class_of(error.code)).append(": ").append(error.message);
}

std::exception_ptr make_exception(const Error& error) {
  return std::make_exception_ptr(to_torch(error));
}

void throw_error(const Error& error) {
  throw to_torch(error);
}

}  // namespace securefabric::torch_room
