// Writing results into tensors that the caller made.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>

namespace securefabric::torch_room {

// Copies elements over those of `target`, out of autograd's sight: neither a node of its graph nor
// a new version, as if the network had written there. So it makes no difference which layout a
// tensor has, whether it requires a gradient or was made in inference mode, and which thread
// writes.
inline void overwrite(const at::Tensor& target, const at::Tensor& value,
                      bool is_non_blocking = false) {
  const at::AutoDispatchBelowADInplaceOrView out_of_sight;
  target.copy_(value, is_non_blocking);
}

// Counts a new version of a tensor, by which autograd finds out that what it saved is gone.
inline void note_overwritten(const at::Tensor& tensor) {
  if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
}

}  // namespace securefabric::torch_room
