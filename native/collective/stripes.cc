#include "collective/stripes.h"

#include <algorithm>

#include "base/check.h"

namespace securefabric::collective {

namespace {

uint32_t stripes_for(uint64_t bytes, const StripeOptions& options) {
  return static_cast<uint32_t>(std::clamp<uint64_t>(
      bytes / std::max<uint64_t>(options.stripe_bytes, 1), 1, options.engines));
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
    // What ranks send each other singly stays whole: only its length tells whether they agree.
    default: return 0;
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
  return options.engines == 1 ? 1 : stripes_for(share_of(whole), options);
}

CollectiveRequest stripe_of(const CollectiveRequest& whole, uint32_t stripe, uint32_t stripes) {
  SF_CHECK(stripe < stripes && kStripeAlignment % whole.element_bytes == 0);
  CollectiveRequest part = whole;
  if (stripes == 1) return part;
  for (Region& region : part.inputs) region = slice(region, stripe, stripes);
  for (Region& region : part.outputs) region = slice(region, stripe, stripes);
  return part;
}

}  // namespace securefabric::collective
