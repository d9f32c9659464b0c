// Every number that chooses between algorithms or sets the size of a pipeline's pieces.
//
// All ranks of an operation must plan with equal options: both ends of a message compute its slot
// and its length on their own.
#pragma once

#include <cstdint>

namespace securefabric::collective {

struct PlanOptions {
  // --- Small or large: up to these sizes latency decides, above them bandwidth does ---

  // all_reduce: tensors of up to max(doubling_bytes, doubling_bytes_per_rank * size) bytes take
  // recursive doubling, log2(size) rounds of the whole tensor; larger ones take the ring, whose
  // 2 (size - 1) rounds move two tensors in all.
  uint64_t all_reduce_doubling_bytes = 64 << 10;
  uint64_t all_reduce_doubling_bytes_per_rank = 4 << 10;
  // reduce_scatter: chunks of up to so many bytes (the largest counts) are exchanged directly. Not
  // above what a receiver holds of a message before the receive is posted.
  uint64_t reduce_scatter_direct_bytes = 16 << 10;
  // all_gather: outputs of up to so many bytes together take Bruck's algorithm, ...
  uint64_t all_gather_bruck_bytes = 256 << 10;
  // ... or go directly to everybody in groups of at most so many ranks.
  uint32_t all_gather_direct_ranks = 4;
  // broadcast, reduce: up to so many bytes per rank of the group go along a binomial tree; above,
  // the pipelined chain has filled before the tree's root has sent everything twice. Two ranks
  // always take the tree, which is then a single message.
  uint64_t tree_bytes_per_rank = 16 << 10;

  // --- Pipelining ---

  // A chunk is cut into about so many segments, ...
  uint32_t segments_per_chunk = 8;
  // ... of at least (below, the cost of a message dominates) and at most so many bytes each (a
  // segment is sent on while still in the cache) ...
  uint64_t segment_bytes_min = 32 << 10;
  uint64_t segment_bytes_max = 256 << 10;
  // ... unless the schedule would grow beyond so many steps: then the segments are larger. A chunk
  // is never less than one segment, so very large groups may exceed this.
  uint32_t steps_max = 16'384;
  // Scratch memory in which a pipelined reduction keeps the partial sums that wait to be sent on
  // and delivered, whatever the size of the tensors. It stays in the cache. Never less than four
  // segments (reduce_scatter) or two (reduce).
  uint64_t window_bytes = 4 << 20;

  // A send of up to so many bytes is complete at once, because the executor copies it. Larger ones
  // read their region until they are delivered. Must not exceed the executor's own limit.
  uint64_t copied_send_bytes = 16 << 10;
};

}  // namespace securefabric::collective
