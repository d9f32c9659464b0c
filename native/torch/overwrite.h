// Writing results into tensors that the caller made.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

namespace securefabric::torch_room {

// Copies elements over those of `target`, out of autograd's sight.
//
// A tensor that was made in inference mode may be written to only inside it, and that mode is a
// thread's own: whichever thread ends a work is rarely the one that made its tensors.
inline void overwrite(const at::Tensor& target, const at::Tensor& value,
                      bool is_non_blocking = false) {
  const at::NoGradGuard no_grad;
  const c10::InferenceMode inference(target.is_inference());
  target.copy_(value, is_non_blocking);
}

}  // namespace securefabric::torch_room
