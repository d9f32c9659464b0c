// SF_CHECK: a broken invariant is our bug, and stops the process with the place and the values.
//
// It stays on in release builds. Nothing that arrives from the network may ever reach one: hostile
// bytes are dropped and counted (see wire/decode.h), they are never asserted on.
#pragma once

#include <string>

namespace securefabric::base {

[[noreturn]] void check_failed(const char* file, int line, const char* condition,
                               const std::string& detail);

}  // namespace securefabric::base

// `detail` is a std::string expression, evaluated only on failure.
#define SF_CHECK_MSG(condition, detail)                                             \
  do {                                                                              \
    if (!(condition)) [[unlikely]]                                                  \
      ::securefabric::base::check_failed(__FILE__, __LINE__, #condition, (detail)); \
  } while (false)

#define SF_CHECK(condition) SF_CHECK_MSG(condition, std::string())

// Only inside per-byte or per-packet loops where the check was measured to cost.
#ifdef SF_DEBUG_CHECKS
#define SF_DCHECK(condition) SF_CHECK(condition)
#else
#define SF_DCHECK(condition) \
  do {                       \
  } while (false)
#endif
