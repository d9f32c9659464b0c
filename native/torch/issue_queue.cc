#include "torch/issue_queue.h"

#include <ATen/Parallel.h>

namespace securefabric::torch_room {

bool IssueQueue::is_free() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return !is_running_;
}

void IssueQueue::issue(const c10::intrusive_ptr<Work>& work, bool has_arrived) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (is_running_ || !has_arrived) {
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
