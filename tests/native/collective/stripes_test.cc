#include "collective/stripes.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "collective/plan_job.h"

namespace securefabric::collective::testing {
namespace {

Schedule plan_default(const CollectiveRequest& request, const PlanOptions& options) {
  return plan(request, options);
}

CollectiveRequest all_reduce_of(uint64_t bytes) {
  return {.kind = OperationKind::kAllReduce,
          .element_bytes = 4,
          .size = 3,
          .inputs = {{0, 8, bytes}},
          .outputs = {{0, 8, bytes}}};
}

// --- count_stripes -----------------------------------------------------------------------------

TEST(CountStripes, by_size__from_one_to_the_number_of_engines) {
  const StripeOptions options{.engines = 4, .stripe_bytes = 1000};
  const auto count = [&](uint64_t bytes) { return count_stripes(all_reduce_of(bytes), options); };
  EXPECT_EQ(count(0), 1u);
  EXPECT_EQ(count(1996), 1u);
  EXPECT_EQ(count(2000), 2u);
  EXPECT_EQ(count(3999), 3u);
  EXPECT_EQ(count(4000), 4u);
  EXPECT_EQ(count(1 << 30), 4u);
  EXPECT_EQ(count_stripes(all_reduce_of(1 << 30), {}), 1u) << "one engine";
}

TEST(CountStripes, chunks__by_what_one_rank_has_on_average) {
  const StripeOptions options{.engines = 4, .stripe_bytes = 1000};
  CollectiveRequest request{.size = 3};
  request.kind = OperationKind::kAllGather;
  request.inputs = {{0, 0, 8000}};
  request.outputs = {{1, 0, 8000}, {1, 8000, 0}, {1, 8000, 1000}};
  EXPECT_EQ(count_stripes(request, options), 3u);
  std::swap(request.inputs, request.outputs);
  request.kind = OperationKind::kReduceScatter;
  EXPECT_EQ(count_stripes(request, options), 3u);
}

TEST(CountStripes, messages__stay_whole) {
  const StripeOptions options{.engines = 4, .stripe_bytes = 1000};
  for (const OperationKind kind :
       {OperationKind::kAllToAll, OperationKind::kGather, OperationKind::kScatter,
        OperationKind::kSend, OperationKind::kReceive}) {
    CollectiveRequest request = all_reduce_of(1 << 20);
    request.kind = kind;
    EXPECT_EQ(count_stripes(request, options), 1u) << operation_kind_name(kind);
  }
  EXPECT_EQ(count_stripes({.kind = OperationKind::kBarrier}, options), 1u);
}

// --- stripe_of ---------------------------------------------------------------------------------

TEST(StripeOf, slices__cover_the_whole_once_and_in_order) {
  for (const uint64_t bytes : {0, 4, 60, 64, 68, 4096, 4100, 100'004}) {
    for (uint32_t stripes = 1; stripes <= 5; ++stripes) {
      uint64_t end = 8;
      for (uint32_t stripe = 0; stripe < stripes; ++stripe) {
        const auto part = stripe_of(all_reduce_of(bytes), stripe, stripes);
        EXPECT_EQ(part.inputs, part.outputs);
        EXPECT_EQ(part.inputs[0].offset, end);
        EXPECT_EQ((end - 8) % kStripeAlignment == 0 || part.inputs[0].length == 0, true);
        end += part.inputs[0].length;
      }
      EXPECT_EQ(end, 8 + bytes);
    }
  }
}

// --- Whole groups ------------------------------------------------------------------------------

TEST(Stripes, every_kind__adds_up_to_the_whole) {
  constexpr OperationKind kKinds[] = {
      OperationKind::kAllReduce, OperationKind::kBroadcast,     OperationKind::kReduce,
      OperationKind::kAllGather, OperationKind::kReduceScatter, OperationKind::kAllToAll,
      OperationKind::kGather,    OperationKind::kScatter,
  };
  for (const OperationKind kind : kKinds) {
    const bool is_reduction = kind == OperationKind::kAllReduce || kind == OperationKind::kReduce ||
                              kind == OperationKind::kReduceScatter;
    for (uint32_t size = 1; size <= 4; ++size) {
      for (const bool in_place : {false, true}) {
        JobSpec spec{.kind = kind, .type = DataType::kFloat32, .size = size, .root = size - 1};
        spec.op = is_reduction ? ReduceOp::kAvg : ReduceOp::kNone;
        spec.in_place = in_place && kind != OperationKind::kAllToAll;
        spec.options.all_reduce_doubling_bytes = 0;
        spec.options.all_reduce_doubling_bytes_per_rank = 0;
        // Uneven, some of nothing, some too small for a second stripe.
        spec.elements = [](uint32_t from, uint32_t to) -> uint64_t {
          return (from + 2 * to) % 3 == 2 ? 0 : 37 + 900 * ((from + to) % 2);
        };
        Job job(spec);
        EXPECT_EQ("", job.run_striped({.engines = 3, .stripe_bytes = 512}, plan_default, size))
            << spec.describe();
      }
    }
  }
}

}  // namespace
}  // namespace securefabric::collective::testing
