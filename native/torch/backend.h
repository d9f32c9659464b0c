// c10d::Backend of one process group: checks the arguments of each call, plans it and starts it.
//
// One method per virtual of c10d, in the order of its header; what they share is in call.h. All
// methods may be called from any thread; calls of one group must come in the same order on all its
// ranks, and calls from several threads at once are ordered by whoever comes first.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "net/fabric.h"
#include "torch/call.h"

namespace securefabric::torch_room {

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
  };

  Backend(std::shared_ptr<net::Fabric> fabric, int rank, int size, const std::string& group_name,
          const std::string& group_key, const std::vector<int64_t>& global_ranks,
          c10::intrusive_ptr<Options> options, bool eager_connect);
  ~Backend() override;

  const std::string getBackendName() const override { return options_->backend; }
  c10::intrusive_ptr<c10d::Backend::Options> getBackendOptions() override { return options_; }
  c10::intrusive_ptr<Options> own_options() const { return options_; }
  void setTimeout(std::chrono::milliseconds timeout) override { options_->timeout = timeout; }
  bool supportsCoalescing() const override { return false; }
  void startCoalescing() override;
  c10::intrusive_ptr<c10d::Work> endCoalescing() override;

  c10::intrusive_ptr<c10d::Work> broadcast(std::vector<at::Tensor>& tensors,
                                           const c10d::BroadcastOptions& opts) override;
  c10::intrusive_ptr<c10d::Work> allreduce(std::vector<at::Tensor>& tensors,
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

  void setSequenceNumberForGroup() override {}
  uint64_t getSequenceNumberForGroup() override { return sequence_.load(); }
  c10d::ErrorType getError() override;
  void abort() override;
  void shutdown() override;

 private:
  // Starts every part of a call and returns its Work.
  c10::intrusive_ptr<c10d::Work> issue(CallBuilder builder);
  CallBuilder begin(const char* name, c10d::OpType type, std::chrono::milliseconds timeout,
                    bool is_async) const;
  void add_all_gather(CallBuilder& call, const std::vector<at::Tensor>& outputs,
                      const at::Tensor& input) const;
  void add_all_gather_base(CallBuilder& call, const at::Tensor& output,
                           const at::Tensor& input) const;
  void add_reduce_scatter_base(CallBuilder& call, const at::Tensor& output, const at::Tensor& input,
                               const c10d::ReduceOp& op) const;
  c10::intrusive_ptr<c10d::Work> point_to_point(const char* name, c10d::OpType type,
                                                collective::OperationKind kind,
                                                std::vector<at::Tensor>& tensors, uint32_t peer,
                                                int tag);

  std::shared_ptr<net::Fabric> fabric_;
  c10::intrusive_ptr<Options> options_;  // second: see gloo_threads
  std::shared_ptr<collective::Group> group_;
  std::atomic<uint64_t> sequence_{0};                      // collectives issued so far
  std::mutex issue_mutex_;                                 // one call at a time is started
  bool is_coalescing_ = false;                             // guarded by issue_mutex_
  std::vector<c10::intrusive_ptr<c10d::Work>> coalesced_;  // guarded by issue_mutex_
  std::atomic<bool> is_shut_down_{false};
};

}  // namespace securefabric::torch_room
