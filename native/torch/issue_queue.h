// Starts the works of a group in the order of the calls, each once its tensors are in host memory.
//
// A work whose tensors lie there is started by the caller, unless an earlier one is still waiting
// for its copies: then both are started by a task on torch's inter-op threads.
#pragma once

#include <deque>
#include <memory>
#include <mutex>

#include "torch/work.h"

namespace securefabric::torch_room {

class IssueQueue : public std::enable_shared_from_this<IssueQueue> {
 public:
  // One call at a time.
  void issue(const c10::intrusive_ptr<Work>& work);

 private:
  void run();

  std::mutex mutex_;
  std::deque<c10::intrusive_ptr<Work>> waiting_;  // guarded by mutex_
  bool is_running_ = false;                       // a task is in run(); guarded by mutex_
};

}  // namespace securefabric::torch_room
