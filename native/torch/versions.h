// What differs between the versions of torch that this builds against (pyproject.toml names them).
#pragma once

#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/headeronly/version.h>

#include <torch/csrc/distributed/c10d/Types.hpp>
#include <torch/csrc/distributed/c10d/Work.hpp>

#include <string_view>

#define SF_TORCH_SINCE(minor) (TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= (minor))

namespace securefabric::torch_room {

#if SF_TORCH_SINCE(13)
using PreMulSumSupplement = c10d::PreMulSumSupplement;
#else
using PreMulSumSupplement = c10d::NCCLPreMulSumSupplement;
#endif

#if SF_TORCH_SINCE(12)
inline constexpr c10d::OpType kReduceScatterTensorCoalesced =
    c10d::OpType::REDUCE_SCATTER_TENSOR_COALESCED;
#else
inline constexpr c10d::OpType kReduceScatterTensorCoalesced = c10d::OpType::COALESCED;
#endif

// Whether the stream records a graph instead of running what is enqueued on it.
inline bool is_capturing(const c10::impl::VirtualGuardImpl& guard, const c10::Stream& stream) {
#if SF_TORCH_SINCE(12)
  return guard.isStreamCapturing(stream);
#else
  // A stream that records refuses to say whether it is done, and that ends its recording.
  try {
    guard.queryStream(stream);
    return false;
  } catch (const c10::Error& error) {
    if (std::string_view(error.what()).find("captur") == std::string_view::npos) throw;
    return true;
  }
#endif
}

}  // namespace securefabric::torch_room
