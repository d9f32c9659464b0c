#include "collective/tuning.h"

#include <algorithm>
#include <string>
#include <tuple>

#include "transport/limits.h"

namespace securefabric::collective {
namespace {

using base::Error;
using base::ErrorCode;

constexpr uint32_t kRanksMax = 1 << 20;  // as a roster entry's world size
constexpr uint32_t kSegmentsMax = 1024;

auto place_of(const TuningRow& row) {
  return std::tuple(row.kind, row.ranks);
}

bool is_tunable(OperationKind kind) {
  switch (kind) {
    case OperationKind::kAllReduce:
    case OperationKind::kBroadcast:
    case OperationKind::kReduce:
    case OperationKind::kAllGather:
    case OperationKind::kReduceScatter: return true;
    default: return false;
  }
}

uint64_t small_bytes_max(OperationKind kind) {
  // Arrives before its receive is posted (plan_options.h).
  if (kind == OperationKind::kReduceScatter) return transport::kEagerMessageBytesMax;
  return uint64_t{1} << 40;
}

Error refusal(const TuningRow& row, const std::string& why) {
  return Error{ErrorCode::kConfig, std::string("tuning of ") + operation_kind_name(row.kind) +
                                       " for " + std::to_string(row.ranks) + " ranks: " + why};
}

}  // namespace

base::Result<TuningTable> TuningTable::make(std::vector<TuningRow> rows) {
  std::sort(rows.begin(), rows.end(), [](const TuningRow& left, const TuningRow& right) {
    return place_of(left) < place_of(right);
  });
  for (size_t i = 0; i < rows.size(); ++i) {
    const TuningRow& row = rows[i];
    if (!is_tunable(row.kind)) return refusal(row, "it has one algorithm only");
    if (row.ranks < 2 || row.ranks > kRanksMax) return refusal(row, "no such number of ranks");
    if (row.small_bytes > small_bytes_max(row.kind)) {
      return refusal(
          row, "small_bytes may be " + std::to_string(small_bytes_max(row.kind)) + " at most");
    }
    if (row.segments_per_chunk < 1 || row.segments_per_chunk > kSegmentsMax) {
      return refusal(row, "segments_per_chunk must be 1 to " + std::to_string(kSegmentsMax));
    }
    if (i > 0 && place_of(row) == place_of(rows[i - 1])) return refusal(row, "it is there twice");
  }
  TuningTable table;
  table.rows_ = std::move(rows);
  return table;
}

PlanOptions TuningTable::options_for(OperationKind kind, uint32_t ranks) const {
  PlanOptions options;
  const TuningRow* chosen = nullptr;
  for (const TuningRow& row : rows_) {
    if (row.kind == kind && (chosen == nullptr || row.ranks <= ranks)) chosen = &row;
  }
  if (chosen == nullptr) return options;
  options.segments_per_chunk = chosen->segments_per_chunk;
  switch (kind) {
    case OperationKind::kAllReduce:
      options.all_reduce_doubling_bytes = chosen->small_bytes;
      options.all_reduce_doubling_bytes_per_rank = 0;
      break;
    case OperationKind::kBroadcast:
    case OperationKind::kReduce: options.tree_bytes_per_rank = chosen->small_bytes / ranks; break;
    case OperationKind::kAllGather: options.all_gather_bruck_bytes = chosen->small_bytes; break;
    case OperationKind::kReduceScatter:
      options.reduce_scatter_direct_bytes = chosen->small_bytes;
      break;
    default: break;
  }
  return options;
}

}  // namespace securefabric::collective
