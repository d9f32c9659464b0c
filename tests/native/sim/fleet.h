// A cluster whose operations the test starts by hand, rank by rank.
#pragma once

#include <gtest/gtest.h>

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "sim/call.h"
#include "sim/cluster.h"

namespace securefabric::sim {

using Operations = std::vector<std::shared_ptr<collective::Operation>>;

inline ClusterOptions cluster_of(uint32_t ranks, uint64_t seed = 1) {
  ClusterOptions options;
  options.ranks = ranks;
  options.seed = seed;
  return options;
}

inline LinkOptions stormy_link() {
  LinkOptions link;
  link.loss = 0.2;
  link.reorder = 0.2;
  link.duplicate = 0.2;
  return link;
}

inline Call all_reduce_of(uint64_t count) {
  Call call;
  call.kind = collective::OperationKind::kAllReduce;
  call.reduce_op = collective::ReduceOp::kSum;
  call.count = count;
  return call;
}

inline Call call_of(collective::OperationKind kind, uint64_t count, uint32_t root = 0) {
  Call call;
  call.kind = kind;
  if (is_reduction(kind)) call.reduce_op = collective::ReduceOp::kSum;
  call.count = count;
  call.root = root;
  return call;
}

class Fleet {
 public:
  explicit Fleet(ClusterOptions options) : cluster(std::move(options)) {}

  // Nothing the checkers saw may be wrong, whatever else a test is about.
  ~Fleet() {
    for (const std::string& violation : cluster.violations()) ADD_FAILURE() << violation;
    EXPECT_EQ(cluster.breakdown(), "");
  }

  // Starts the call on one rank. Calls of several ranks that share `run` are one collective.
  std::shared_ptr<collective::Operation> start(CallRun& run, uint32_t rank) {
    const auto operation = run.make_operation(cluster.world(rank), base::Instant::never());
    cluster.audit().add_canary(run.input(rank));
    cluster.start(rank, operation);
    return operation;
  }
  CallRun& make_run(const Call& call) { return runs_.emplace_back(call, cluster.size()); }
  // Starts the call on every rank that lives.
  Operations start_all(const Call& call) { return start_all(make_run(call)); }
  Operations start_all(CallRun& run) {
    Operations operations;
    for (uint32_t rank = 0; rank < cluster.size(); ++rank) {
      if (cluster.is_alive(rank)) operations.push_back(start(run, rank));
    }
    return operations;
  }

  bool run_until_done(const Operations& operations, base::Duration limit) {
    return cluster.run_until(
        [&] {
          for (const auto& operation : operations) {
            if (!operation->is_done) return false;
          }
          return true;
        },
        cluster.now() + limit);
  }
  bool run_until_drained(base::Duration limit) {
    return cluster.run_until(
        [&] {
          for (uint32_t rank = 0; rank < cluster.size(); ++rank) {
            if (cluster.is_alive(rank) && !cluster.engine(rank).endpoint().is_drained()) {
              return false;
            }
          }
          return true;
        },
        cluster.now() + limit);
  }
  // One collective from start to end on every rank, with the right result.
  void expect_works(const Call& call, base::Duration limit = base::Duration::seconds(30)) {
    CallRun& run = make_run(call);
    const Operations operations = start_all(run);
    EXPECT_TRUE(run_until_done(operations, limit)) << describe(call);
    expect_right(run, operations);
  }
  void expect_right(const CallRun& run, const Operations& operations) {
    for (const auto& operation : operations) {
      const uint32_t rank = operation->group().rank;
      ASSERT_FALSE(operation->error) << "rank " << rank << ": " << operation->error->message;
      EXPECT_EQ(run.check(rank).value_or("right"), "right") << "rank " << rank;
    }
  }

  Cluster cluster;

 private:
  std::deque<CallRun> runs_;  // addresses stay: the operations point into them
};

inline testing::AssertionResult failed_with(const collective::Operation& operation,
                                            base::ErrorCode code, const std::string& part) {
  const std::string who = "rank " + std::to_string(operation.group().rank) + ": ";
  if (!operation.is_done) return testing::AssertionFailure() << who << "not done";
  if (!operation.error) return testing::AssertionFailure() << who << "succeeded";
  if (operation.error->code != code || operation.error->message.find(part) == std::string::npos) {
    return testing::AssertionFailure() << who << base::error_code_name(operation.error->code)
                                       << ": " << operation.error->message << "\n(expected "
                                       << base::error_code_name(code) << " with '" << part << "')";
  }
  return testing::AssertionSuccess();
}

}  // namespace securefabric::sim
