// Strong types for the numbers that identify things, so that one cannot be passed for another.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>

namespace securefabric::base {

// A process's position in the job's world (the global rank, never a rank inside a subgroup).
struct Rank {
  uint32_t value = 0;
  constexpr auto operator<=>(const Rank&) const = default;
};

// A (sender socket, receiver socket) pair as the sender numbers it. PROTOCOL.md §1.
struct PathId {
  uint16_t value = 0;
  constexpr auto operator<=>(const PathId&) const = default;

  static constexpr PathId from_sockets(uint8_t sender_socket, uint8_t receiver_socket) {
    return PathId{static_cast<uint16_t>(sender_socket << 8 | receiver_socket)};
  }
  constexpr uint8_t sender_socket() const { return static_cast<uint8_t>(value >> 8); }
  constexpr uint8_t receiver_socket() const { return static_cast<uint8_t>(value & 0xFF); }
  // The same pair of sockets seen from the other end.
  constexpr PathId reversed() const { return from_sockets(receiver_socket(), sender_socket()); }
};

// Chosen by the receiver; finds the peer and its keys. PROTOCOL.md §1.
struct Spi {
  uint32_t value = 0;
  constexpr auto operator<=>(const Spi&) const = default;
};

// Counts the datagrams sealed on one path in one direction, from 0. PROTOCOL.md §1.
using PacketNumber = uint64_t;

// Sixteen random bytes that name one incarnation of a process.
using BootId = std::array<uint8_t, 16>;

}  // namespace securefabric::base

template <>
struct std::hash<securefabric::base::Rank> {
  size_t operator()(securefabric::base::Rank rank) const noexcept { return rank.value; }
};
template <>
struct std::hash<securefabric::base::Spi> {
  size_t operator()(securefabric::base::Spi spi) const noexcept { return spi.value; }
};
