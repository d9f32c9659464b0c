// One collective or point-to-point operation on this rank: what was asked, and how far it is.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "base/time.h"
#include "collective/group.h"
#include "collective/reduce_kernels.h"
#include "collective/schedule.h"
#include "collective/types.h"
#include "transport/message.h"

namespace securefabric::collective {

// A receive that takes a message of its tag from any rank of the group.
inline constexpr uint32_t kAnySource = UINT32_MAX;

// What the caller fills in. Engine thread from start() on; before that, whoever builds it.
struct OperationRequest {
  std::shared_ptr<Group> group;  // where it runs
  OperationKind kind = OperationKind::kBarrier;
  DataType data_type = DataType::kByte;
  ReduceOp reduce_op = ReduceOp::kNone;
  uint32_t root = 0;   // group rank, 0 where there is none
  uint64_t count = 0;  // elements of the whole operation, as all ranks see it
  uint32_t tag = 0;    // send and receive only
  // Number of a collective, from 0 in its group; without one the engine counts. An engine that does
  // not take part in all of them cannot.
  std::optional<uint64_t> sequence;
  double premul_factor = 1.0;                       // kPremulSum only
  Schedule schedule;                                // this rank's steps; `peer` is a group rank
  std::vector<base::MutableBytes> buffers;          // by Region::buffer, without scratch
  base::Instant deadline = base::Instant::never();  // when it fails with kTimeout
};

class Operation {
 public:
  explicit Operation(OperationRequest request);
  Operation(const Operation&) = delete;
  Operation& operator=(const Operation&) = delete;

  const OperationRequest& request() const { return request_; }
  const Group& group() const { return *request_.group; }
  const std::shared_ptr<Group>& shared_group() const { return request_.group; }
  const wire::Signature& signature() const { return signature_; }
  bool is_point_to_point() const {
    return request_.kind == OperationKind::kSend || request_.kind == OperationKind::kReceive;
  }
  // "all_reduce(float32 x 1024, SUM)".
  std::string describe() const;

  // --- Owned by the engine ---

  // Runs a step that needs no network.
  void run_local(const Step& step);
  base::MutableBytes bytes_of(const Region& region);

  // Where the bytes of one receiving step go.
  class StepSink : public transport::FragmentSink {
   public:
    void place(uint64_t offset, base::Bytes bytes) override;
    Operation* operation = nullptr;  // the owner
    const Step* step = nullptr;      // one of its steps
  };

  struct StepState {
    uint32_t waits_for = 0;  // dependencies that are not complete
    bool is_started = false;
    bool is_done = false;
    transport::Token token = 0;  // of its send or receive, once posted
    StepSink sink;               // receives only
  };

  uint64_t id = 0;                        // in the order of starting
  bool is_held = false;                   // no step begins before Engine::release; set before start
  std::vector<StepState> states;          // parallel to the schedule's steps
  std::vector<uint32_t> dependent_begin;  // CSR index into `dependents`, one more than steps
  std::vector<uint32_t> dependents;       // steps that wait for a step, grouped by it
  size_t steps_left = 0;                  // not done
  uint64_t sequence = 0;                  // in its group; point-to-point: of its peer and tag
  uint32_t source_rank = kAnySource;      // group rank a receive was matched with
  base::Instant started_at;               // when the engine took it
  base::Instant inquiry_at;               // when to ask the silent peers what they are doing
  base::Duration inquiry_interval;        // doubles
  base::Instant timer_at = base::Instant::never();  // as it stands in the engine's timers
  std::set<uint32_t> not_started;    // group ranks that said they have not reached it
  std::set<uint32_t> unknown_to;     // group ranks that said they know no such group
  bool is_done = false;              // it is in the completed queue
  std::optional<base::Error> error;  // why it failed, once done

  // --- Owned by the driver ---

  // Called once, outside every lock, after the operation is done. Set before start().
  std::function<void()> on_done;
  // The caller will wait for it at once: no other thread needs to be woken when it is done.
  bool is_synchronous = false;
  // `error` and the buffers may be read by any thread that has seen this.
  std::atomic<bool> is_visible{false};
  // Whoever turns this to true calls on_done.
  std::atomic<bool> is_notified{false};
  // Threads inside Driver::wait for it.
  std::atomic<int> waiters{0};

 private:
  void index_dependents();

  OperationRequest request_;
  wire::Signature signature_;
  std::vector<uint8_t> scratch_;  // the buffer with index schedule.scratch_buffer
  ReduceFn reduce_ = nullptr;     // null for movement operations
  ScaleFn prepare_ = nullptr;     // null unless PREMUL_SUM
  ScaleFn finish_ = nullptr;      // null unless AVG
};

// The same, from a signature that came from a peer.
std::string describe_signature(const wire::Signature& signature);

}  // namespace securefabric::collective
