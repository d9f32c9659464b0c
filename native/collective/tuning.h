// Which algorithm serves which size, for each kind of operation and number of ranks: the defaults
// of plan_options.h, or what somebody has measured on his machines.
//
// Part of what all ranks must plan with alike: the roster compares a digest of the table.
#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "collective/plan_options.h"
#include "collective/types.h"

namespace securefabric::collective {

struct TuningRow {
  OperationKind kind = OperationKind::kAllReduce;
  uint32_t ranks = 2;  // of the group that it was measured in
  // Up to so many bytes take the algorithm for small data: of the tensor (all_reduce, broadcast,
  // reduce), of the gathered tensor (all_gather), of the longest chunk (reduce_scatter).
  uint64_t small_bytes = 0;
  uint32_t segments_per_chunk = PlanOptions().segments_per_chunk;
};

class TuningTable {
 public:
  TuningTable() = default;  // the defaults

  // kConfig, naming the row, when one is of a kind that has one algorithm only, out of range, or
  // there twice.
  static base::Result<TuningTable> make(std::vector<TuningRow> rows);

  // By the row with the most ranks that are not more than `ranks`; else by the one with the fewest;
  // else the defaults.
  PlanOptions options_for(OperationKind kind, uint32_t ranks) const;

 private:
  std::vector<TuningRow> rows_;  // ordered by kind, then ranks
};

}  // namespace securefabric::collective
