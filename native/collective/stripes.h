// How a large collective is cut into stripes, one for each engine of a rank.
//
//   CollectiveRequest of the whole --count_stripes()--> n --stripe_of(0 .. n-1)--> n requests
//
// A stripe is a collective of its own, on a slice of every region: what all ranks plan for stripe i
// fits, because they cut regions of equal lengths alike. It all follows from lengths on which all
// ranks agree, so nothing has to be said about it. The first stripe is never missing: a rank that
// did not cut its call meets those that did in the first engine, and their signatures tell. What
// ranks send each other singly (all_to_all, gather, scatter) has no such signature: it stays whole.
// PROTOCOL.md §8.5.
#pragma once

#include <cstdint>

#include "collective/plan.h"

namespace securefabric::collective {

// A rank's share of the data, in bytes, from which on another stripe pays. An engine that slept
// takes some ten microseconds to begin, and a core seals so much in a few hundred.
inline constexpr uint64_t kStripeBytes = 512 << 10;
// Stripes begin at multiples of it in their region: no element is cut, and where the region begins
// at one as well, no two engines write to one cache line.
inline constexpr uint64_t kStripeAlignment = 64;

struct StripeOptions {
  uint32_t engines = 1;                  // of each rank; equal on all of them
  uint64_t stripe_bytes = kStripeBytes;  // likewise
};

// Into how many stripes, at least one. Equal on all ranks.
uint32_t count_stripes(const CollectiveRequest& whole, const StripeOptions& options);

CollectiveRequest stripe_of(const CollectiveRequest& whole, uint32_t stripe, uint32_t stripes);

}  // namespace securefabric::collective
