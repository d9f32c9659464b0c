// Flag bits of the frames. Every bit that is not named here must be zero.
#pragma once

#include <cstdint>

namespace securefabric::wire {

inline constexpr uint8_t kDataHasSignature = 0x01;
inline constexpr uint8_t kDataWantsAckNow = 0x02;
inline constexpr uint8_t kDataIsEager = 0x04;
inline constexpr uint8_t kDataPointToPoint = 0x08;
inline constexpr uint8_t kDataFlags = 0x0F;

// One at most.
inline constexpr uint8_t kStatusWantsAnswer = 0x01;
inline constexpr uint8_t kStatusUnknownGroup = 0x02;

}  // namespace securefabric::wire
