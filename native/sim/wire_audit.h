// The checkers that look at every datagram as it enters a link; always on.
//
//   nonces   under one (receiver, SPI, path) packet numbers only ever rise: none is sealed twice
//   secrecy  no datagram holds a piece of a tensor (a canary) in the clear
//   trace    a hash over who sent what to whom and when: equal seeds, equal hashes
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "base/bytes.h"
#include "base/ids.h"
#include "base/time.h"
#include "sim/network.h"

namespace securefabric::sim {

// A datagram as it entered a link.
struct RecordedDatagram {
  base::Rank from;    // sender
  base::Rank to;      // receiver
  std::string bytes;  // header, ciphertext, tag
};

class WireAudit {
 public:
  static constexpr size_t kCanaryBytes = 16;
  using Canary = std::array<uint8_t, kCanaryBytes>;
  // Canaries that are looked for at a time; older ones are forgotten.
  static constexpr size_t kCanariesMax = 4;

  void add_canary(base::Bytes payload);
  // From now on, up to kRecordedMax datagrams are kept, for tests that open them themselves.
  static constexpr size_t kRecordedMax = 1 << 16;
  void start_recording() { is_recording_ = true; }
  std::vector<RecordedDatagram> take_recording() { return std::move(recording_); }

  void on_datagram(base::Instant now, const Route& route, base::Bytes datagram);
  // Anything else that is part of the run's history: completions, failures.
  void on_event(base::Instant now, base::Rank rank, uint64_t what);

  // Another checker has found something wrong with what was sent here.
  void report(const Route& route, const std::string& what);

  uint64_t trace_hash() const { return hash_; }
  // What was found wrong, one sentence each; at most kViolationsMax of them.
  const std::vector<std::string>& violations() const { return violations_; }

 private:
  static constexpr size_t kViolationsMax = 16;
  // Receiver, SPI, path: what names one key sequence.
  using Sequence = std::tuple<base::Rank, base::Spi, base::PathId>;

  void check_nonce(const Route& route, base::Bytes datagram);
  void check_secrecy(const Route& route, base::Bytes datagram);
  void mix(uint64_t value);

  std::map<Sequence, base::PacketNumber> last_number_;  // sent under each sequence
  std::vector<Canary> canaries_;                        // pieces of tensors, oldest first
  std::vector<std::string> violations_;
  bool is_recording_ = false;                // see start_recording()
  std::vector<RecordedDatagram> recording_;  // in the order of sending
  uint64_t hash_ = 0x5366'3173'696D'0001;    // of the history so far
};

}  // namespace securefabric::sim
