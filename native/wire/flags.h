// Flag bits of the frames. Every bit that is not named here must be zero.
#pragma once

#include <cstdint>

namespace securefabric::wire {

inline constexpr uint8_t kDataHasSignature = 0x01;
inline constexpr uint8_t kDataWantsAckNow = 0x02;
inline constexpr uint8_t kDataIsEager = 0x04;
inline constexpr uint8_t kDataPointToPoint = 0x08;
inline constexpr uint8_t kDataIsAnnounced = 0x10;
inline constexpr uint8_t kDataFlags = 0x1F;

inline constexpr uint8_t kGrantPointToPoint = 0x01;
inline constexpr uint8_t kGrantIsPull = 0x02;
inline constexpr uint8_t kGrantFlags = 0x03;

// One at most.
inline constexpr uint8_t kStatusWantsAnswer = 0x01;
inline constexpr uint8_t kStatusUnknownGroup = 0x02;

}  // namespace securefabric::wire
