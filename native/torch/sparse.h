// The sum of sparse tensors over a group, in two stages: all ranks tell each other how many
// elements they have, by a collective; then everyone sends its indices and values to everyone else.
//
// The second stage starts when the first is over, which need not be at the same point of every
// rank's sequence of calls. So it consists of messages, and the calls of one group post theirs in
// the order in which they were issued (SparseLane).
#pragma once

#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "torch/call.h"
#include "torch/work.h"

namespace securefabric::torch_room {

class SparseAllReduce;

// The calls of a group whose second stage has not started, in the order of issue.
struct SparseLane {
  std::mutex mutex;
  std::deque<c10::intrusive_ptr<SparseAllReduce>> waiting;  // guarded by mutex
};

class SparseAllReduce final : public EndingWork {
 public:
  // What this rank brings: the sum of its tensors, which are alike and sparse.
  static at::Tensor contribution(const std::vector<at::Tensor>& tensors);
  // Sums all ranks' contributions, of which `own` is this one's, and overwrites each of `tensors`
  // with the result.
  SparseAllReduce(std::shared_ptr<const GroupContext> context, std::shared_ptr<SparseLane> lane,
                  Facts facts, at::Tensor own, std::vector<at::Tensor> tensors,
                  std::chrono::milliseconds timeout);
  // Once, in order with the other calls of the group: while holding the lock of issuing.
  void start();
  // After `start`, without any lock: a callback may run in here.
  void watch();

  bool wait(std::chrono::milliseconds timeout = kNoTimeout) override;
  void abort() override;

 private:
  void on_shapes();
  static void post_ready(SparseLane& lane);
  void post_elements();
  std::exception_ptr find_mismatch() const;
  void on_elements();
  at::Tensor sum() const;
  void fail(const std::exception_ptr& failure);
  CallBuilder begin(c10d::OpType type) const;

  const std::shared_ptr<const GroupContext> context_;
  const std::shared_ptr<SparseLane> lane_;  // of the group
  const std::vector<at::Tensor> tensors_;
  const base::Instant deadline_;     // of both stages
  const at::Tensor own_;             // what this rank contributes, coalesced
  const at::Tensor shapes_;          // a row of int64 per rank, see kShape in sparse.cc
  bool has_shapes_ = false;          // the first stage is over; guarded by the lane's mutex
  std::vector<at::Tensor> indices_;  // of each rank
  std::vector<at::Tensor> values_;   // of each rank
  c10::intrusive_ptr<Work> first_;   // stage
  c10::intrusive_ptr<Work> second_;  // stage; null when it could not be started ...
  std::exception_ptr obstacle_;      // ... because of this
};

}  // namespace securefabric::torch_room
