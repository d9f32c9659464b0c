// How bursts may be handed to the kernel for each destination, remembered where the best way
// failed.
//
// Whether segmentation works depends on the device behind the route, so it is learnt per
// destination IP address and at run time; success on loopback says nothing about a NIC. Only
// destinations that need a fallback are stored, so the table is empty, and costs one comparison, on
// most hosts.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "base/socket_address.h"

namespace securefabric::net {

// From best to most portable; a refusal moves one step on, and never back.
enum class SendMode : uint8_t {
  kSegmented,  // one sendmsg with UDP_SEGMENT
  kBatched,    // sendmmsg, one message per segment
  kSingle,     // sendmsg, one call per segment
};

class SendModes {
 public:
  explicit SendModes(SendMode best) : best_(best) {}

  // Ports are ignored: the device does not depend on them.
  SendMode mode_for(const base::SocketAddress& to) const;
  // From now on `to` is sent with `mode`. In a full set the oldest note is overwritten, which costs
  // that destination one more refused call.
  void remember(const base::SocketAddress& to, SendMode mode);

 private:
  static constexpr size_t kSets = 64;
  static constexpr size_t kWays = 4;  // 256 destinations in all

  struct Entry {
    base::SocketAddress address;           // with port 0; kNone when the entry is free
    SendMode mode = SendMode::kSegmented;  // how to send there
  };
  struct Set {
    std::array<Entry, kWays> entries;  // in no order
    uint8_t next_victim = 0;           // entry that the next new address takes
  };

  std::array<Set, kSets> sets_{};  // found by hash of the address
  SendMode best_;                  // for destinations that are not in the table
  bool is_empty_ = true;           // no destination needed a fallback yet
};

}  // namespace securefabric::net
