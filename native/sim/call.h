// One collective called by every rank of a group: its buffers, its operations, and what must come
// out of it, computed naively.
//
//   Call (what) ─► CallRun (buffers of all ranks) ─► make_operation(rank) ─► engine
//                                                └─► check(rank): exact, guards untouched
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "collective/operation.h"
#include "collective/plan.h"

namespace securefabric::sim {

struct Call {
  collective::OperationKind kind = collective::OperationKind::kAllReduce;
  collective::DataType data_type = collective::DataType::kFloat32;
  collective::ReduceOp reduce_op = collective::ReduceOp::kNone;  // kNone for movement
  uint32_t root = 0;         // group rank; 0 for kinds without a root
  uint64_t count = 0;        // elements of a chunk; of the tensor where there are no chunks
  bool is_uneven = false;    // chunks differ in length by some elements, some may be empty
  bool is_in_place = false;  // see may_be_in_place
  uint64_t seed = 0;         // of the values
};

bool is_reduction(collective::OperationKind kind);
bool has_root(collective::OperationKind kind);
// The kinds that are simulated with the input inside the output's memory.
bool may_be_in_place(collective::OperationKind kind);
// "all_reduce float32 x 1000 SUM".
std::string describe(const Call& call);

// Lives until every operation it made is done.
class CallRun {
 public:
  CallRun(const Call& call, uint32_t size);

  // The operation of one rank; `group` is that rank's. Once per rank.
  std::shared_ptr<collective::Operation> make_operation(
      const std::shared_ptr<collective::Group>& group, base::Instant deadline);
  // What is wrong on this rank, if anything is: a wrong byte, a write beside the output or into the
  // input.
  std::optional<std::string> check(uint32_t rank) const;
  // What the rank contributes.
  base::Bytes input(uint32_t rank) const { return given_[rank]; }
  const Call& call() const { return call_; }

 private:
  struct Layout {
    std::vector<collective::Region> inputs;   // in buffer 0, or in buffer 1 when in place
    std::vector<collective::Region> outputs;  // in buffer 1, behind a guard
  };

  uint64_t chunk_bytes(uint32_t from, uint32_t to) const;
  std::vector<uint64_t> input_lengths(uint32_t rank) const;
  std::vector<uint64_t> output_lengths(uint32_t rank) const;
  Layout layout(uint32_t rank) const;
  std::vector<uint8_t> make_input(uint32_t rank) const;
  std::vector<uint8_t> expected(uint32_t rank) const;
  const std::vector<uint8_t>& reduced_whole() const;
  std::vector<uint8_t> reduced(uint64_t begin_bytes, uint64_t length) const;
  uint64_t total_count() const;

  Call call_;
  uint32_t size_;                              // ranks of the group
  size_t element_bytes_;                       // of the data type
  std::vector<std::vector<uint8_t>> given_;    // by rank: the input as it was made
  std::vector<std::vector<uint8_t>> sources_;  // by rank: buffer 0
  std::vector<std::vector<uint8_t>> targets_;  // by rank: buffer 1
  // What every rank gets of an all_reduce; made when first asked for.
  mutable std::optional<std::vector<uint8_t>> reduced_whole_;
};

// Point-to-point operations between two ranks of a group. `bytes` lives until they are done.
std::shared_ptr<collective::Operation> make_send(const std::shared_ptr<collective::Group>& group,
                                                 uint32_t peer, uint32_t tag,
                                                 base::MutableBytes bytes);
// `peer` may be collective::kAnySource.
std::shared_ptr<collective::Operation> make_receive(const std::shared_ptr<collective::Group>& group,
                                                    uint32_t peer, uint32_t tag,
                                                    base::MutableBytes bytes);

}  // namespace securefabric::sim
