#include "sim/wire_audit.h"

#include <algorithm>
#include <cstring>

#include "wire/header.h"

namespace securefabric::sim {

using base::Instant;

void WireAudit::add_canary(base::Bytes payload) {
  if (payload.size() < kCanaryBytes) return;
  Canary canary;
  std::copy_n(payload.begin(), kCanaryBytes, canary.begin());
  if (canaries_.size() == kCanariesMax) canaries_.erase(canaries_.begin());
  canaries_.push_back(canary);
}

void WireAudit::on_datagram(Instant now, const Route& route, base::Bytes datagram) {
  check_nonce(route, datagram);
  check_secrecy(route, datagram);
  if (is_recording_ && recording_.size() < kRecordedMax) {
    recording_.push_back({route.from, route.to, {datagram.begin(), datagram.end()}});
  }
  mix(static_cast<uint64_t>(now.nanos()));
  mix(uint64_t{route.from.value} << 32 | route.to.value);
  mix(uint64_t{route.from_socket} << 8 | route.to_socket);
  mix(datagram.size());
  // The authentication tag depends on every other byte.
  uint64_t tail = 0;
  std::memcpy(&tail, datagram.data() + datagram.size() - sizeof(tail), sizeof(tail));
  mix(tail);
}

void WireAudit::on_event(Instant now, base::Rank rank, uint64_t what) {
  mix(static_cast<uint64_t>(now.nanos()));
  mix(uint64_t{rank.value} << 32 ^ what);
}

// Senders number and send in one step, so numbers rise on the wire; a number that does not rise was
// used before. (Of a burst or a path change nothing else can be the cause.)
void WireAudit::check_nonce(const Route& route, base::Bytes datagram) {
  wire::Header header;
  if (wire::decode_header(datagram, header) != wire::HeaderStatus::kOk) {
    return report(route, "a datagram without a valid header was sent");
  }
  if (header.path != base::PathId::from_sockets(route.from_socket, route.to_socket)) {
    report(route, "the path id " + std::to_string(header.path.value) + " is of another route");
  }
  const auto [last, is_first] =
      last_number_.try_emplace({route.to, header.spi, header.path}, header.packet_number);
  if (!is_first && header.packet_number <= last->second) {
    report(route, "packet number " + std::to_string(header.packet_number) + " was sent after " +
                      std::to_string(last->second));
  }
  last->second = header.packet_number;
}

void WireAudit::check_secrecy(const Route& route, base::Bytes datagram) {
  for (const Canary& canary : canaries_) {
    if (::memmem(datagram.data(), datagram.size(), canary.data(), canary.size()) != nullptr) {
      report(route, "a datagram holds plaintext of a tensor");
    }
  }
}

void WireAudit::report(const Route& route, const std::string& what) {
  if (violations_.size() == kViolationsMax) return;
  violations_.push_back("rank " + std::to_string(route.from.value) + " socket " +
                        std::to_string(route.from_socket) + " to rank " +
                        std::to_string(route.to.value) + " socket " +
                        std::to_string(route.to_socket) + ": " + what);
}

void WireAudit::mix(uint64_t value) {
  constexpr uint64_t kOdd = 0x9E37'79B9'7F4A'7C15;
  hash_ = (hash_ ^ value) * kOdd;
  hash_ ^= hash_ >> 32;
}

}  // namespace securefabric::sim
