#include "base/result.h"

namespace securefabric::base {

const char* error_code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::kConfig: return "config";
    case ErrorCode::kAuth: return "auth";
    case ErrorCode::kMismatch: return "mismatch";
    case ErrorCode::kTimeout: return "timeout";
    case ErrorCode::kPeerLost: return "peer_lost";
    case ErrorCode::kAborted: return "aborted";
    case ErrorCode::kLimit: return "limit";
    case ErrorCode::kForked: return "forked";
    case ErrorCode::kSystem: return "system";
  }
  return "unknown";
}

}  // namespace securefabric::base
