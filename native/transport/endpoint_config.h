// What an endpoint is told once, when it is made.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "base/ids.h"
#include "base/socket_address.h"
#include "crypto/aead.h"
#include "crypto/key_exchange.h"
#include "crypto/secret.h"
#include "transport/limits.h"
#include "transport/link_epochs.h"

namespace securefabric::transport {

struct EndpointConfig {
  base::Rank rank;                                  // of this process in the world
  uint32_t world_size = 1;                          // ranks in the job
  uint32_t engine = 0;                              // which of the rank's engines this one is for
  const crypto::AeadProvider* aead = nullptr;       // of the job's suite; outlives the endpoint
  unsigned generation_bits = 22;                    // log2 of the packets sealed under one key
  crypto::SecretBuffer private_key;                 // X25519, 32 bytes, made for this incarnation
  crypto::SecretBuffer job_secret;                  // from the job key; empty without one
  LinkEpochs::DrawPrivateKey draw_private_key;      // of later epochs: 32 bytes of fresh entropy
  std::function<uint64_t()> draw_challenge;         // fresh entropy, too: who cannot see a
                                                    // challenge must not be able to echo it
  EpochLimits epoch_limits;                         // when a link's keys are replaced
  base::Spi spi_base;                               // random; the SPI for peer r is spi_base + r
  std::vector<base::AddressFamily> sockets;         // of the local sockets, numbered from 0
  size_t paths_per_peer = 8;                        // sending paths to each peer, at most
  size_t datagram_bytes_max = kDatagramBytesJumbo;  // the most that a local interface takes
  size_t burst_segments_max = kBurstSegmentsMax;    // 1 where segmentation offload is switched off
  // What the peers may have in flight to this rank, together, so that no socket buffer overflows.
  uint64_t receive_budget_bytes = kReceiveBudgetDefault;
  uint64_t random_seed = 0;  // for choices that anybody may guess: jitter, which path is next
  base::Duration join_timeout = kJoinTimeoutDefault;    // entry and first answer of a peer
  base::Duration death_timeout = kDeathTimeoutDefault;  // silence of a peer that was reached
  base::Duration heartbeat = kHeartbeatDefault;         // idle time after which a ping is sent
  bool heeds_delay = true;    // false only in comparisons: windows react to nothing but loss
  bool sprays_blind = false;  // true only in comparisons: round robin over the paths
};

}  // namespace securefabric::transport
