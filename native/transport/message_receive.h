// The messages one peer is sending to this rank: matching, placement, exactly-once.
//
//   fragment ─► finished before? ─► known or new message ─► match() ─► placed into the sink
//                                                              └─► held (eager) ─► attach() ─►
//                                                              placed
//
// A byte reaches its sink once, however often it is resent: what arrived is kept as a range set per
// message, and finished message ids as a range set per connection (ids are never reused).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <unordered_map>
#include <vector>

#include "base/range_set.h"
#include "transport/counters.h"
#include "transport/limits.h"
#include "transport/message.h"

namespace securefabric::transport {

class InboundMessages {
 public:
  InboundMessages(base::Rank peer, ReceiveMatcher& matcher, TrafficCounters& counters)
      : peer_(peer), matcher_(matcher), counters_(counters) {}

  // Events to report and grants to send that a call has caused; the caller empties them.
  struct Effects {
    std::vector<Event> events;
    std::vector<wire::GrantFrame> grants;  // without grant_id
  };

  // Returns an error when the peer breaks the protocol or a limit.
  base::Status on_data(const wire::DataFrame& frame, Effects& effects);
  // Gives a held message its receive. The id came from ReceiveMatcher::match.
  void attach(uint64_t message_id, const PostedReceive& receive, Effects& effects);
  // The sinks of the group's receives go away; what still comes for them is dropped.
  void withdraw_group(uint64_t group);
  // Drops what is held for a group that is gone.
  void drop_group(uint64_t group);
  // Drops what is incomplete: the peer has left and will send no more.
  void keep_complete();
  // A message that has begun and is not done with.
  bool has(uint64_t message_id) const { return messages_.contains(message_id); }
  void clear();

  // The cumulative charge the peer may reach with eager messages.
  uint64_t eager_limit() const { return eager_freed_ + kEagerWindow; }
  // The cumulative number of messages that the peer may have announced.
  uint64_t announced_limit() const { return announced_freed_ + kAnnouncedMax; }
  // How many it has.
  uint64_t announced() const { return announced_; }

  // A large message was granted before it was heard of.
  void on_granted_unasked(uint64_t group) {
    ++granted_[group];
    ++granted_total_;
  }
  // How many of those are not finished.
  uint64_t granted() const { return granted_total_; }
  size_t size() const { return messages_.size(); }

 private:
  struct Message {
    wire::MessageKey key;                      // from the first fragment that arrived
    uint64_t length = 0;                       // bytes, likewise
    std::optional<wire::Signature> signature;  // once the fragment at offset 0 arrived
    std::optional<PostedReceive> receive;      // once matched
    base::RangeSet received;                   // bytes that arrived
    std::vector<uint8_t> held;                 // bytes of an eager message without receive
    bool is_eager = false;                     // charged to the credit
    bool is_announced = false;                 // counted
    bool is_discarded = false;                 // not what the receive expects: bytes are dropped
    bool is_reported = false;                  // the mismatch was
    bool is_granted = false;                   // its request was answered; grants are reliable
  };
  using Messages = std::unordered_map<uint64_t, Message>;

  base::Status admit(const wire::DataFrame& frame, Messages::iterator& at);
  // Asks for a receive; false when nobody will ever want the message.
  bool offer(uint64_t id, Message& message, Effects& effects);
  // Answers a request to send, once however often it comes.
  void grant(Message& message, Effects& effects);
  void bind(Message& message, const PostedReceive& receive, Effects& effects);
  // Discards a message that is not what its receive expects, and reports that once.
  void check_agreement(Message& message, Effects& effects);
  void place(Message& message, const wire::DataFrame& frame);
  void finish_if_complete(Messages::iterator at, Effects& effects);
  void finish(Messages::iterator at);
  template <typename Predicate>
  void finish_if(Predicate is_over);
  void forget_grants(uint64_t group);

  base::Rank peer_;
  ReceiveMatcher& matcher_;
  TrafficCounters& counters_;
  Messages messages_;                     // begun and not finished, by message id
  base::RangeSet finished_;               // ids of messages that are done with
  uint64_t eager_charged_ = 0;            // cumulative charge of the eager messages that began
  uint64_t eager_freed_ = 0;              // cumulative charge of those that are done with
  std::map<uint64_t, uint64_t> granted_;  // unasked and not finished, by group
  uint64_t granted_total_ = 0;            // their sum
  uint64_t announced_ = 0;                // cumulative number of announced messages that began
  uint64_t announced_freed_ = 0;          // of those that are done with
};

}  // namespace securefabric::transport
