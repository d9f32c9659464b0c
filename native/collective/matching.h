// Which inbound message belongs to which posted receive.
//
// Collectives match exactly: (peer, group, operation, slot) names one message. Point-to-point
// messages match in order: the n-th message of a (peer, tag) goes to the first posted receive of
// that tag that accepts the peer, and receives are served in the order of posting (MPI-4.1 §3.5).
// Engine thread; nothing here calls back into the transport.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "base/ids.h"
#include "transport/message.h"
#include "wire/frames.h"

namespace securefabric::collective {

// A message that has begun to arrive and has no receive yet.
struct HeldMessage {
  base::Rank peer;                           // global rank of the sender
  uint64_t message_id = 0;                   // of the transport
  uint64_t length = 0;                       // bytes
  std::optional<wire::Signature> signature;  // once its first fragment arrived
};

class CollectiveMatching {
 public:
  struct Key {
    uint64_t group = 0;
    uint64_t operation = 0;
    base::Rank peer;
    uint32_t slot = 0;
    auto operator<=>(const Key&) const = default;
  };

  // Returns the held message for this receive, if it has begun; otherwise remembers the receive.
  std::optional<HeldMessage> post(const Key& key, const transport::PostedReceive& receive);
  // Forgets the receives of a group.
  void withdraw_group(uint64_t group);
  // Takes the posted receive for a message that begins; otherwise remembers the message.
  std::optional<transport::PostedReceive> take(const Key& key, const HeldMessage& message);
  // The message that is held for a receive that is not yet posted.
  const HeldMessage* held_at(const Key& key) const;
  // Messages that were held for an operation, with their keys.
  std::vector<std::pair<Key, HeldMessage>> held_for(uint64_t group, uint64_t operation) const;
  void drop_group(uint64_t group);

 private:
  std::map<Key, transport::PostedReceive> posted_;
  std::map<Key, HeldMessage> held_;
};

class PointToPointMatching {
 public:
  struct Pair {
    transport::PostedReceive receive;
    HeldMessage message;
  };

  // `source` is a global rank, or nothing for any.
  void post(uint64_t group, uint32_t tag, std::optional<base::Rank> source,
            const transport::PostedReceive& receive);
  // Forgets the receives of a group.
  void withdraw_group(uint64_t group);
  // The number of the message that a receive from `source` will get, if it is the oldest or the
  // newest of its tag, and no receive of the tag takes messages of any source.
  std::optional<uint64_t> awaited_by(uint64_t group, uint32_t tag, base::Rank source,
                                     transport::Token receive) const;
  // Offers a message that begins to arrive. The receive, if it can be matched at once.
  std::optional<transport::PostedReceive> offer(uint64_t group, uint32_t tag, uint64_t sequence,
                                                const HeldMessage& message);
  // The next pair of a posted receive and a held message that belong together, if there is one.
  std::optional<Pair> take_pair(uint64_t group, uint32_t tag);
  void drop_group(uint64_t group);
  // Forgets messages of ranks that are not in the group.
  void drop_strangers(uint64_t group, const std::vector<base::Rank>& members);

 private:
  struct Posted {
    uint64_t order = 0;  // of posting, over all sources of the tag
    transport::PostedReceive receive;
  };
  using Source = std::optional<base::Rank>;  // nothing: any
  struct Lane {
    uint64_t next_sequence = 0;               // of the next message to match
    std::map<uint64_t, HeldMessage> waiting;  // by sequence
  };
  struct TagQueue {
    uint64_t next_order = 0;
    std::map<Source, std::deque<Posted>> posted;  // in the order of posting; none is empty
    std::map<base::Rank, Lane> lanes;             // by sender
  };
  // Takes the first receive that accepts a message of this sender.
  static std::optional<transport::PostedReceive> take_receive(TagQueue& queue, base::Rank sender);

  std::map<std::pair<uint64_t, uint32_t>, TagQueue> queues_;  // by (group, tag)
};

}  // namespace securefabric::collective
