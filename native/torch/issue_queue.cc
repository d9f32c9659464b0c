#include "torch/issue_queue.h"

#include <ATen/Parallel.h>

namespace securefabric::torch_room {

void IssueQueue::issue(const c10::intrusive_ptr<Work>& work) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (is_running_ || work->is_staged()) {
      waiting_.push_back(work);
      if (std::exchange(is_running_, true)) return;
      at::launch([self = shared_from_this()] { self->run(); });
      return;
    }
  }
  work->submit();
}

void IssueQueue::run() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!waiting_.empty()) {
    const auto work = waiting_.front();
    lock.unlock();
    work->submit();
    lock.lock();
    waiting_.pop_front();
  }
  is_running_ = false;
}

}  // namespace securefabric::torch_room
