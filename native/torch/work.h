// The handle of one call: waits, futures, errors, profiler events.
//
// A Work covers one operation of the core, or several: of a coalesced call, or of one that is cut
// into stripes. It is complete when all are. It owns the tensors and a reference to the fabric, so
// it outlives the backend that made it.
#pragma once

#include <torch/csrc/distributed/c10d/Work.hpp>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "collective/operation.h"
#include "torch/group_context.h"
#include "torch/phase.h"
#include "torch/tensors.h"

namespace securefabric::torch_room {

// What the clock can count: 146 years at most. A timedelta of more than 292,000 years, such as
// timedelta.max, is more than pybind11 can count and arrives as a negative number of that size.
std::chrono::milliseconds bounded(std::chrono::milliseconds timeout);

// Now and so many milliseconds; never, where those are more than the clock can count.
base::Instant deadline_after(std::chrono::milliseconds timeout);

// The works of one group that have not ended, and who wants to hear of each end. Any thread.
class WorkLedger {
 public:
  using Hook = std::function<void(std::shared_ptr<c10d::WorkInfo>)>;

  // Before the first work: called on the thread that ends a work, with no lock held.
  void set_hook(Hook hook) { hook_ = std::move(hook); }
  bool has_hook() const { return hook_ != nullptr; }

  void on_begin() { ++pending_; }
  void on_end(const c10d::WorkInfo& info);
  void wait_for_all();

 private:
  Hook hook_;
  std::atomic<size_t> pending_{0};
  std::mutex mutex_;
  std::condition_variable none_pending_;
};

// Closes the phase and waits until its collectives have ended, at the latest until then. Any
// thread.
void close_and_wait(Phase& phase, base::Instant until);

// What our works have in common: they end once, with an error or without, and futures tell it.
class EndingWork : public c10d::Work {
 public:
  struct Facts {
    c10d::OpType type = c10d::OpType::UNKNOWN;
    std::string title;                   // of the profiler event: "securefabric:all_reduce"
    std::vector<at::Tensor> profiled;    // whose shapes the profiler shows
    std::vector<at::Tensor> results;     // the value of the future, all on one device ...
    size_t results_per_list = 0;         // ... in lists of so many; 0: in one
    uint64_t sequence = 0;               // of the group, for getSequencenumber
    std::shared_ptr<WorkLedger> ledger;  // of the group
    std::shared_ptr<Phase> phase;        // that this collective belongs to; null for others
  };
  EndingWork(int rank, Facts facts);

  bool isCompleted() override;
  bool isSuccess() const override;
  std::exception_ptr exception() const override;
  std::vector<at::Tensor> result() override { return facts_.results; }
  void synchronize() override {}
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override;
  c10::intrusive_ptr<c10::ivalue::Future> getFutureResult() override;
  uint64_t getSequencenumber() const override { return facts_.sequence; }
  // Milliseconds from the call to the end.
  float getDuration() const override;

 protected:
  // Once, on any thread, holding no lock: the futures' callbacks run in here.
  void end(const std::exception_ptr& failure, bool has_timed_out);
  // Until `end`.
  void await_end();
  void rethrow_failure() const;
  // After whose work the results are there; none for results in host memory. Once completed.
  virtual std::optional<c10::Stream> result_stream() const { return std::nullopt; }

 private:
  c10::IValue future_value() const;
  // Of a completed work: a c10d::WorkResult.
  c10::IValue result_value() const;
  void settle(c10::ivalue::Future& future) const;

  Facts facts_;
  base::Instant started_at_;
  base::Instant finished_at_;   // guarded by mutex_
  bool has_timed_out_ = false;  // guarded by mutex_
  bool futures_taken_ = false;  // end() has read the two below; guarded by mutex_
  // Made when asked for; guarded by mutex_. Settled without it, since callbacks run then.
  c10::intrusive_ptr<c10::ivalue::Future> future_;
  c10::intrusive_ptr<c10::ivalue::Future> future_result_;
};

// What is copied where when a call has succeeded: both tensors on the device of its results.
struct CopyBack {
  at::Tensor to;
  at::Tensor from;
};

class Work final : public EndingWork {
 public:
  // What the Work keeps besides its operations.
  struct Call {
    struct Part {
      TensorTable table;
      uint32_t stripes = 1;  // operations that share it, one in each of the first engines
    };
    std::shared_ptr<const GroupContext> context;  // the group is given up when a wait times out
    std::vector<Part> parts;
    std::vector<CopyBack> copies_back;  // once all operations have succeeded
    std::shared_ptr<Phase> earlier;     // what a barrier waits for; null for others
  };
  // An operation and whether it could be started is told later, by `expect` and `start`.
  Work(int rank, Facts facts, Call call);

  // Once, before anything else: the operations of this call, those of a part side by side.
  void own(std::vector<std::shared_ptr<collective::Operation>> operations);
  // Whether `submit` has to wait for copies from a device.
  bool is_staged() const;
  // Waits for these copies, for at most so long.
  bool has_arrived_by(base::Instant until) const;
  // Once: starts the operations, each when its inputs are in host memory. Errors surface in wait().
  void submit();

  int sourceRank() const override;
  void synchronize() override;
  bool wait(std::chrono::milliseconds timeout = kNoTimeout) override;
  // The same without consequences: false when it has not completed by `until`. Throws only what
  // Python's signal handlers raise.
  bool is_completed_by(base::Instant until);
  void abort() override;

 protected:
  std::optional<c10::Stream> result_stream() const override;

 private:
  bool is_done_by(const std::shared_ptr<collective::Operation>& operation, base::Instant until);
  void start_operation(size_t index, size_t part);
  void on_operation_done(size_t index, size_t part);
  bool is_last_of(size_t part);
  void on_failure(const base::Error& error);
  void complete();
  void give_up(const base::Error& error);
  std::string describe_unfinished() const;

  Call call_;
  std::vector<std::shared_ptr<collective::Operation>> operations_;  // as given to `own`
  std::atomic<size_t> operations_left_{0};
  std::unique_ptr<std::atomic<uint32_t>[]> stripes_left_;  // by part; null where none is cut
  std::optional<base::Error> error_;                       // the first failure; guarded by mutex_
};

// Completes when all of `works` have; what endCoalescing returns.
class CoalescedWork final : public c10d::Work {
 public:
  CoalescedWork(int rank, std::vector<c10::intrusive_ptr<c10d::Work>> works);
  bool isCompleted() override;
  bool isSuccess() const override;
  std::exception_ptr exception() const override;
  std::vector<at::Tensor> result() override;
  void synchronize() override;
  bool wait(std::chrono::milliseconds timeout = kNoTimeout) override;
  void abort() override;
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override;
  c10::intrusive_ptr<c10::ivalue::Future> getFutureResult() override;

 private:
  std::vector<c10::intrusive_ptr<c10d::Work>> works_;
};

}  // namespace securefabric::torch_room
