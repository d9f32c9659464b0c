#include "torch/device_stage.h"

#include <ATen/core/grad_mode.h>
#include <c10/core/StreamGuard.h>

#include "net/clock.h"
#include "torch/overwrite.h"
#include "torch/versions.h"

namespace securefabric::torch_room {

c10::Stream current_stream(at::Device device) {
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device);
}

DeviceStage::DeviceStage(at::Device device)
    : stream_(c10::impl::VirtualGuardImpl(device.type())
                  .getStreamFromGlobalPool(device, /*isHighPriority=*/true)),
      enqueued_(device.type()) {
  const c10::impl::VirtualGuardImpl guard(device.type());
  const c10::Stream current = guard.getStream(device);
  TORCH_CHECK(!is_capturing(guard, current),
              "securefabric: a collective cannot be recorded in a graph; call it outside of the "
              "capture");
  enqueued_.record(current);
  enqueued_.block(stream_);
}

at::Tensor DeviceStage::host_like(const at::Tensor& tensor) const {
  return at::empty(tensor.sizes(),
                   tensor.options().device(at::kCPU).pinned_memory(true).memory_format(
                       at::MemoryFormat::Contiguous));
}

void DeviceStage::download(const at::Tensor& host, const at::Tensor& tensor) {
  const at::NoGradGuard no_grad;
  const c10::StreamGuard on_side_stream(stream_);
  const c10::impl::VirtualGuardImpl guard(stream_.device_type());
  guard.recordDataPtrOnStream(tensor.storage().data_ptr(), stream_);
  host.copy_(tensor, /*non_blocking=*/true);
  enqueued_.record(stream_);
}

void DeviceStage::upload(const at::Tensor& tensor, const at::Tensor& host) {
  const c10::StreamGuard on_side_stream(stream_);
  const c10::impl::VirtualGuardImpl guard(stream_.device_type());
  guard.recordDataPtrOnStream(tensor.storage().data_ptr(), stream_);
  overwrite(tensor, host, /*is_non_blocking=*/true);
  enqueued_.record(stream_);
}

void DeviceStage::await() const {
  enqueued_.synchronize();
}

bool DeviceStage::is_done_by(base::Instant until) const {
  while (!enqueued_.query()) {
    if (net::now() >= until) return false;
    net::give_way();
  }
  return true;
}

void DeviceStage::hold(const c10::Stream& stream) const {
  enqueued_.block(stream);
}

}  // namespace securefabric::torch_room
