// c10d::Backend of one process group: checks the arguments of each call, plans it and starts it.
//
// One method per virtual of c10d: a group's life in backend.cc, its collectives in collectives.cc,
// messages and barriers in messages.cc; what they share is in call.h. All methods may be called
// from any thread; calls of one group must come in the same order on all its ranks, and calls from
// several threads at once are ordered by whoever comes first.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "collective/stripes.h"
#include "net/fabric.h"
#include "torch/call.h"
#include "torch/sparse.h"

namespace securefabric::torch_room {

// Which group a backend is made for, and this process's place in it.
struct Membership {
  int rank = 0;                        // inside the group
  int size = 0;                        // ranks of the group
  std::string name;                    // for messages; repeats after the group's end
  std::string identity;                // equal on all members (PROTOCOL.md §7.1)
  std::string board;                   // where members are found, as net::Fabric::Resolve takes it
  std::vector<int64_t> global_ranks;   // of each group rank
  std::shared_ptr<const void> keeper;  // of the board, and of what else ends with the group
};

class Backend final : public c10d::Backend {
 public:
  static constexpr const char* kName = "securefabric";

  // `presented_name` is what a group calls itself: ours, or that of the one it stands in for.
  struct Options final : c10d::Backend::Options {
    explicit Options(std::chrono::milliseconds limit = kBackendDefaultTimeout,
                     std::string presented_name = kName)
        : c10d::Backend::Options(std::move(presented_name), limit) {}
    static c10::intrusive_ptr<Options> copy_of(const Options& other);

    // DDP's logger takes what is called "gloo" for torch's ProcessGroupGloo and reads its number of
    // threads: these two, and options_ below, lie where that class has its own.
    std::vector<std::shared_ptr<void>> gloo_devices;
    int gloo_threads = 2;

    // Treats tensors in host memory as those of a device are, but for the device's own copies.
    bool test_stages_host_tensors = false;
    // Less makes small calls use several engines; equal on all ranks.
    uint64_t test_stripe_bytes = collective::kStripeBytes;
  };

  // The options become the backend's own.
  Backend(std::shared_ptr<net::Fabric> fabric, Membership membership,
          c10::intrusive_ptr<Options> options, bool eager_connect);
  ~Backend() override;

  const std::string getBackendName() const override { return options_->backend; }
  // A copy: ProcessGroup::splitGroup writes the new group's name and timeout into what it gets.
  c10::intrusive_ptr<c10d::Backend::Options> getBackendOptions() override;
  c10::intrusive_ptr<Options> own_options() const { return options_; }
  void setTimeout(std::chrono::milliseconds timeout) override {
    options_->timeout = bounded(timeout);
  }
  // Times of a work are always there.
  void enableCollectivesTiming() override {}
  // Called on the thread that ends a work, before later calls of the group may begin: register it
  // before the first call.
  void registerOnCompletionHook(WorkLedger::Hook&& hook) override;
  void waitForPendingWorks() override { context_->ledger->wait_for_all(); }
  bool supportsCoalescing() const override { return false; }
  void startCoalescing() override;
  c10::intrusive_ptr<c10d::Work> endCoalescing() override;

  c10::intrusive_ptr<c10d::Work> broadcast(std::vector<at::Tensor>& tensors,
                                           const c10d::BroadcastOptions& opts) override;
  c10::intrusive_ptr<c10d::Work> allreduce(std::vector<at::Tensor>& tensors,
                                           const c10d::AllreduceOptions& opts) override;
  // SUM of sparse tensors; `allreduce` comes here with them too.
  c10::intrusive_ptr<c10d::Work> allreduce_sparse(std::vector<at::Tensor>& tensors,
                                                  const c10d::AllreduceOptions& opts) override;
  c10::intrusive_ptr<c10d::Work> allreduce_coalesced(
      std::vector<at::Tensor>& tensors, const c10d::AllreduceCoalescedOptions& opts) override;
  c10::intrusive_ptr<c10d::Work> reduce(std::vector<at::Tensor>& tensors,
                                        const c10d::ReduceOptions& opts) override;
  c10::intrusive_ptr<c10d::Work> allgather(std::vector<std::vector<at::Tensor>>& outputs,
                                           std::vector<at::Tensor>& inputs,
                                           const c10d::AllgatherOptions& opts) override;
  c10::intrusive_ptr<c10d::Work> _allgather_base(at::Tensor& output, at::Tensor& input,
                                                 const c10d::AllgatherOptions& opts) override;
  c10::intrusive_ptr<c10d::Work> allgather_coalesced(std::vector<std::vector<at::Tensor>>& outputs,
                                                     std::vector<at::Tensor>& inputs,
                                                     const c10d::AllgatherOptions& opts) override;
  c10::intrusive_ptr<c10d::Work> allgather_into_tensor_coalesced(
      std::vector<at::Tensor>& outputs, std::vector<at::Tensor>& inputs,
      const c10d::AllgatherOptions& opts) override;
  c10::intrusive_ptr<c10d::Work> gather(std::vector<std::vector<at::Tensor>>& outputs,
                                        std::vector<at::Tensor>& inputs,
                                        const c10d::GatherOptions& opts) override;
  c10::intrusive_ptr<c10d::Work> scatter(std::vector<at::Tensor>& outputs,
                                         std::vector<std::vector<at::Tensor>>& inputs,
                                         const c10d::ScatterOptions& opts) override;
  c10::intrusive_ptr<c10d::Work> reduce_scatter(std::vector<at::Tensor>& outputs,
                                                std::vector<std::vector<at::Tensor>>& inputs,
                                                const c10d::ReduceScatterOptions& opts) override;
  c10::intrusive_ptr<c10d::Work> _reduce_scatter_base(
      at::Tensor& output, at::Tensor& input, const c10d::ReduceScatterOptions& opts) override;
  c10::intrusive_ptr<c10d::Work> reduce_scatter_tensor_coalesced(
      std::vector<at::Tensor>& outputs, std::vector<at::Tensor>& inputs,
      const c10d::ReduceScatterOptions& opts) override;
  c10::intrusive_ptr<c10d::Work> alltoall_base(at::Tensor& output, at::Tensor& input,
                                               std::vector<int64_t>& output_splits,
                                               std::vector<int64_t>& input_splits,
                                               const c10d::AllToAllOptions& opts) override;
  c10::intrusive_ptr<c10d::Work> alltoall(std::vector<at::Tensor>& outputs,
                                          std::vector<at::Tensor>& inputs,
                                          const c10d::AllToAllOptions& opts) override;
  c10::intrusive_ptr<c10d::Work> send(std::vector<at::Tensor>& tensors, int peer, int tag) override;
  c10::intrusive_ptr<c10d::Work> recv(std::vector<at::Tensor>& tensors, int peer, int tag) override;
  c10::intrusive_ptr<c10d::Work> recvAnysource(std::vector<at::Tensor>& tensors, int tag) override;
  c10::intrusive_ptr<c10d::Work> barrier(const c10d::BarrierOptions& opts) override;
  // Returns when all ranks have called it. On rank 0 an error names those that have not within the
  // timeout; the group cannot be used any more then.
  void monitoredBarrier(const c10d::BarrierOptions& opts, bool wait_all_ranks) override;

  // The numbers are the issue queue's: all ranks begin with the same one without agreeing on it.
  void setSequenceNumberForGroup() override {}
  uint64_t getSequenceNumberForGroup() override { return sequence_.load(); }
  // A group of some of this one's ranks, made of what they know already: nothing is sent, and the
  // store is not used. Null on a rank that is no member; it need not call this.
  bool supportsSplitting() const override { return true; }
  c10::intrusive_ptr<c10d::Backend> split(
      const c10::intrusive_ptr<c10d::Store>& store, const std::vector<int>& ranks,
      const c10::intrusive_ptr<c10d::Backend::Options>& opts) override;
  // A group of processes of this job that may have no other in common: they meet on the store.
  c10::intrusive_ptr<c10d::Backend> merge(const c10::intrusive_ptr<c10d::Store>& store,
                                          const c10::intrusive_ptr<c10d::Backend::Options>& opts,
                                          const int& rank, const int& size) override;
  // Links all members now instead of with the first operation.
  void eagerConnectSingleDevice(at::Device device) override;
  c10d::ErrorType getError() override;
  void abort() override;
  void shutdown() override;

 private:
  // A group of processes that know each other from this one.
  Membership beside_this() const;
  // Puts a Work that has just been started among those of startCoalescing. Under issue_mutex_.
  void note_issued(const c10::intrusive_ptr<c10d::Work>& work);
  void leave();
  // Starts every part of a call and returns its Work.
  c10::intrusive_ptr<c10d::Work> issue(CallBuilder builder);
  CallBuilder begin(const char* name, c10d::OpType type, std::chrono::milliseconds timeout,
                    bool is_async) const;
  Part& add_all_gather(CallBuilder& call, const std::vector<at::Tensor>& outputs,
                       const at::Tensor& input) const;
  void add_all_gather_base(CallBuilder& call, const at::Tensor& output,
                           const at::Tensor& input) const;
  void add_reduce_scatter_base(CallBuilder& call, const at::Tensor& output, const at::Tensor& input,
                               const c10d::ReduceOp& op) const;
  // A message of no bytes.
  c10::intrusive_ptr<Work> signal(collective::OperationKind kind, int peer, uint32_t tag,
                                  std::chrono::milliseconds timeout);
  void await_arrivals(std::chrono::milliseconds timeout, bool wait_all_ranks);
  void await_release(std::chrono::milliseconds timeout);
  [[noreturn]] void fail_barrier(const std::string& message);
  c10::intrusive_ptr<c10d::Work> point_to_point(const char* name, c10d::OpType type,
                                                collective::OperationKind kind,
                                                std::vector<at::Tensor>& tensors, uint32_t peer,
                                                int tag);

  net::Fabric& fabric() const { return *context_->fabric; }
  const collective::Group& group() const { return context_->group(); }

  std::shared_ptr<const GroupContext> context_;  // written by the constructor
  c10::intrusive_ptr<Options> options_;          // second: see gloo_threads
  const std::string board_;                      // of the group, see Membership
  std::shared_ptr<const void> keeper_;           // guarded by issue_mutex_, until shutdown
  const std::shared_ptr<SparseLane> sparse_lane_ = std::make_shared<SparseLane>();
  std::atomic<uint64_t> sequence_{0};                      // collectives issued so far
  mutable std::mutex issue_mutex_;                         // one call at a time is started
  bool is_coalescing_ = false;                             // guarded by issue_mutex_
  std::vector<c10::intrusive_ptr<c10d::Work>> coalesced_;  // guarded by issue_mutex_
  std::atomic<bool> is_shut_down_{false};
};

}  // namespace securefabric::torch_room
