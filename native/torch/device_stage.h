// Tensors in device memory (CUDA): the core reads and writes pinned host memory, and the copies run
// on a side stream, so that they wait for the caller's kernels and nothing else waits for them.
//
// Written against c10's device-generic guards, streams and events: it needs no CUDA headers, and
// compiles with a CPU build of torch, in which nothing comes here.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>

#include <optional>

#include "base/time.h"

namespace securefabric::torch_room {

// One thread at a time; whoever uses it has seen what its former user did.
class DeviceStage {
 public:
  // What the caller's current stream has to do up to here comes before every copy. Throws while
  // that stream records a graph: a replay could not repeat what the network did.
  explicit DeviceStage(at::Device device);

  // Dense pinned host memory for the elements of `tensor`.
  at::Tensor host_like(const at::Tensor& tensor) const;
  // Enqueues a copy; the memory is kept until it is done.
  void download(const at::Tensor& host, const at::Tensor& tensor);
  void upload(const at::Tensor& tensor, const at::Tensor& host);
  // Waits, in this thread, until everything enqueued so far is done.
  void await() const;
  // The same for at most so long; false when it is not done by then.
  bool is_done_by(base::Instant until) const;
  // What is enqueued on a stream from here on comes after what was enqueued here so far.
  void hold(const c10::Stream& stream) const;

  const c10::Stream& stream() const { return stream_; }

 private:
  c10::Stream stream_;
  c10::Event enqueued_;  // after the latest copy
};

// The stream on which the caller's kernels run now.
c10::Stream current_stream(at::Device device);

}  // namespace securefabric::torch_room
