#include "collective/stripes.h"

#include <algorithm>

#include "base/check.h"

namespace securefabric::collective {

namespace {

uint32_t stripes_for(uint64_t bytes, const StripeOptions& options) {
  return static_cast<uint32_t>(
      std::clamp<uint64_t>(bytes / options.stripe_bytes, 1, options.engines));
}

// What a rank contributes or gets, on average where chunks differ: equal on all ranks.
uint64_t share_of(const CollectiveRequest& whole) {
  const auto mean = [&whole](const std::vector<Region>& chunks) {
    uint64_t bytes = 0;
    for (const Region& chunk : chunks) bytes += chunk.length;
    return bytes / whole.size;
  };
  switch (whole.kind) {
    case OperationKind::kAllReduce:
    case OperationKind::kReduce: return whole.inputs.front().length;
    case OperationKind::kBroadcast: return whole.outputs.front().length;
    case OperationKind::kAllGather: return mean(whole.outputs);
    case OperationKind::kReduceScatter: return mean(whole.inputs);
    default: return 0;  // messages that go their own ways, or none
  }
}

Region slice(const Region& whole, uint32_t stripe, uint32_t stripes) {
  const auto boundary = [&](uint32_t at) {
    if (at >= stripes) return whole.length;
    return whole.length / kStripeAlignment * at / stripes * kStripeAlignment;
  };
  const uint64_t begin = boundary(stripe);
  return {whole.buffer, whole.offset + begin, boundary(stripe + 1) - begin};
}

}  // namespace

uint32_t count_stripes(const CollectiveRequest& whole, const StripeOptions& options) {
  if (options.engines == 1) return 1;
  if (whole.kind != OperationKind::kAllToAll) return stripes_for(share_of(whole), options);
  uint64_t longest = 0;
  for (const Region& block : whole.inputs) longest = std::max(longest, block.length);
  for (const Region& block : whole.outputs) longest = std::max(longest, block.length);
  return stripes_for(longest, options);
}

CollectiveRequest stripe_of(const CollectiveRequest& whole, uint32_t stripe, uint32_t stripes,
                            const StripeOptions& options) {
  SF_CHECK(stripe < stripes && kStripeAlignment % whole.element_bytes == 0);
  CollectiveRequest part = whole;
  if (stripes == 1) return part;
  const bool is_by_pairs = whole.kind == OperationKind::kAllToAll;
  const auto cut = [&](Region& region) {
    region = slice(region, stripe, is_by_pairs ? stripes_for(region.length, options) : stripes);
  };
  std::for_each(part.inputs.begin(), part.inputs.end(), cut);
  std::for_each(part.outputs.begin(), part.outputs.end(), cut);
  return part;
}

}  // namespace securefabric::collective
