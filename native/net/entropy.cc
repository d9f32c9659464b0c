#include "net/entropy.h"

#include <sys/random.h>

#include <cerrno>

#include "net/system_error.h"

namespace securefabric::net {

base::Status fill_entropy(base::MutableBytes out) {
  while (!out.empty()) {
    const ssize_t count = ::getrandom(out.data(), out.size(), 0);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return system_error("getrandom", errno);
    out = out.subspan(static_cast<size_t>(count));
  }
  return base::ok_status();
}

}  // namespace securefabric::net
