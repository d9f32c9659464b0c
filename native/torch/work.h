// The handle of one call: waits, futures, errors, profiler events.
//
// A Work covers one operation of the core, or several for a coalesced call; it is complete when all
// are. It owns the tensors and a reference to the fabric, so it outlives the backend that made it.
#pragma once

#include <torch/csrc/distributed/c10d/Work.hpp>

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "collective/operation.h"
#include "net/fabric.h"
#include "torch/tensors.h"

namespace securefabric::torch_room {

class Work final : public c10d::Work {
 public:
  // What the Work keeps besides its operations.
  struct Call {
    std::shared_ptr<net::Fabric> fabric;
    std::shared_ptr<collective::Group> group;  // to be given up when a wait times out
    c10d::OpType type = c10d::OpType::UNKNOWN;
    std::string title;                 // of the profiler event: "securefabric:all_reduce"
    std::vector<at::Tensor> profiled;  // whose shapes the profiler shows
    std::vector<at::Tensor> results;   // the value of the future
    std::vector<TensorTable> tables;   // one per operation
    uint64_t sequence = 0;             // of the group, for getSequencenumber
  };
  // An operation and whether it could be started is told later, by `expect` and `start`.
  Work(int rank, Call call);

  // Before anything is started: how many operations belong to this call. None completes it at once.
  void expect(size_t operations);
  // Starts one of them. Errors surface in wait().
  void start(const std::shared_ptr<collective::Operation>& operation);

  bool isCompleted() override;
  bool isSuccess() const override;
  std::exception_ptr exception() const override;
  int sourceRank() const override;
  std::vector<at::Tensor> result() override;
  void synchronize() override {}
  bool wait(std::chrono::milliseconds timeout = kNoTimeout) override;
  void abort() override;
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override;
  c10::intrusive_ptr<c10::ivalue::Future> getFutureResult() override;
  uint64_t getSequencenumber() const override { return call_.sequence; }
  float getDuration() const override;

 private:
  void on_operation_done(const collective::Operation& operation);
  void on_failure(const base::Error& error);
  void complete();
  void give_up(const base::Error& error);
  // Of a completed work: a c10d::WorkResult.
  c10::IValue result_value() const;
  static void settle(c10::ivalue::Future& future, const c10::IValue& value,
                     const std::exception_ptr& failure);

  Call call_;
  std::vector<std::shared_ptr<collective::Operation>> operations_;  // written before any is done
  std::atomic<size_t> operations_left_{0};
  std::optional<base::Error> error_;  // the first failure; guarded by mutex_
  base::Instant started_at_;
  base::Instant finished_at_;   // guarded by mutex_
  bool futures_taken_ = false;  // complete() has read the two below; guarded by mutex_
  // Made when asked for; guarded by mutex_. Settled without it, since callbacks run then.
  c10::intrusive_ptr<c10::ivalue::Future> future_;
  c10::intrusive_ptr<c10::ivalue::Future> future_result_;
};

// Completes when all of `works` have; what endCoalescing returns.
class CoalescedWork final : public c10d::Work {
 public:
  CoalescedWork(int rank, std::vector<c10::intrusive_ptr<c10d::Work>> works);
  bool isCompleted() override;
  bool isSuccess() const override;
  std::exception_ptr exception() const override;
  std::vector<at::Tensor> result() override;
  void synchronize() override {}
  bool wait(std::chrono::milliseconds timeout = kNoTimeout) override;
  void abort() override;
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override;

 private:
  std::vector<c10::intrusive_ptr<c10d::Work>> works_;
};

}  // namespace securefabric::torch_room
