// Starts the works of a group in the order of the calls, each once its tensors are in host memory.
//
// A work whose tensors have arrived there is started by the caller, unless an earlier one is still
// waiting for its copies: then both are started by a task on torch's inter-op threads.
#pragma once

#include <deque>
#include <memory>
#include <mutex>

#include "torch/phase.h"
#include "torch/work.h"

namespace securefabric::torch_room {

class IssueQueue : public std::enable_shared_from_this<IssueQueue> {
 public:
  // The number of the group's next collective, and that so many are about to be issued. One caller
  // at a time, who holds the lock of issuing.
  uint64_t next_collective() const { return next_collective_; }
  void count_collectives(uint64_t collectives) { next_collective_ += collectives; }
  // The same caller. What the group's collectives belong to now; and a new one for those to come,
  // which returns the former.
  const std::shared_ptr<Phase>& phase() const { return phase_; }
  std::shared_ptr<Phase> begin_phase() { return std::exchange(phase_, std::make_shared<Phase>()); }

  // The same caller. Whether nothing is waiting, so that what is issued next and whose tensors have
  // arrived is started at once.
  bool is_free();
  void issue(const c10::intrusive_ptr<Work>& work, bool has_arrived);

 private:
  void run();

  uint64_t next_collective_ = 0;  // guarded by the lock of issuing (Backend)
  std::shared_ptr<Phase> phase_ = std::make_shared<Phase>();  // likewise
  std::mutex mutex_;
  std::deque<c10::intrusive_ptr<Work>> waiting_;  // guarded by mutex_
  bool is_running_ = false;                       // a task is in run(); guarded by mutex_
};

}  // namespace securefabric::torch_room
