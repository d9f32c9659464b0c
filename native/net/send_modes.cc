#include "net/send_modes.h"

namespace securefabric::net {

SendMode SendModes::mode_for(const base::SocketAddress& to) const {
  if (is_empty_) return best_;
  const base::SocketAddress address = to.with_port(0);
  for (const Entry& entry : sets_[address.hash() % kSets].entries) {
    if (entry.address == address) return entry.mode;
  }
  return best_;
}

void SendModes::remember(const base::SocketAddress& to, SendMode mode) {
  const base::SocketAddress address = to.with_port(0);
  Set& set = sets_[address.hash() % kSets];
  is_empty_ = false;
  for (Entry& entry : set.entries) {
    if (entry.address != address) continue;
    entry.mode = mode;
    return;
  }
  set.entries[set.next_victim] = {address, mode};
  set.next_victim = static_cast<uint8_t>((set.next_victim + 1) % kWays);
}

}  // namespace securefabric::net
