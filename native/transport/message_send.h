// The messages this rank is sending to one peer: what may be sent, what is next, what is settled.
//
//   post ──► eager (credit enough) ──────────────► sendable ──► next() ──► on_acked ──► delivered
//        └─► waits for a grant (announced if the ▲                 ▲   └─► on_lost ─┐
//            receiver cannot know of it)  ───────┤                 └────────────────┘
//        └─► waits for credit or a pull ─────────┘
//
// The receiver says how much it holds for us: bytes of eager messages, and a number of announced
// ones. What is beyond waits here in the order of posting. A receiver that waits for one of those
// asks for it by name (a pull), so that no receive waits for messages that nobody receives.
//
// Small messages overtake large ones. Large ones that are passed on, which are still in the cache,
// take turns with those that were there from the beginning, kOthersLead bytes behind them. Inside
// each class the order is that of posting, and what was lost goes first.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <unordered_map>
#include <vector>

#include "base/range_set.h"
#include "transport/limits.h"
#include "transport/message.h"
#include "transport/sent_packets.h"

namespace securefabric::transport {

class SendQueue {
 public:
  // True when the message was copied: its bytes may change, and nothing will be reported.
  bool post(const SendRequest& request);
  // Forgets messages of the group that were not copied, so that their bytes may go away, and grants
  // for those that were not posted.
  void withdraw_group(uint64_t group);
  // Forgets what was never begun of a group that is gone.
  void drop_group(uint64_t group);
  // The messages that report delivery and went out as a whole, because the peer had asked for them
  // or had credit for them; in the order of their tokens.
  std::vector<Token> sent_as_a_whole() const;
  // Forgets everything and releases all memory.
  void clear();

  // Returns an error when the peer grants more than it can keep track of.
  base::Status on_grant(const wire::GrantFrame& grant);
  // Both limits are cumulative and never shrink.
  void on_credit(uint64_t eager_limit, uint64_t announced_limit);
  void on_lost(const SentData& data);
  // Returns the token of a message that was not copied and was delivered by this.
  std::optional<Token> on_acked(const SentData& data);

  bool has_next() const { return !small_.empty() || !passed_on_.empty() || !large_.empty(); }
  // The next fragment, of at most `bytes_max` bytes behind its header. Nothing when nothing is
  // sendable or the room is too small for a useful piece.
  std::optional<wire::DataFrame> next(size_t room);
  // Bytes that may be sent now, counted until they are `enough`.
  uint64_t sendable_bytes(uint64_t enough) const;
  // True when everything posted was acknowledged.
  bool is_drained() const { return messages_.empty(); }
  // The same of one group's messages.
  bool is_drained_of(uint64_t group) const;
  uint64_t resent_bytes() const { return resent_bytes_; }
  uint64_t resent_fragments() const { return resent_fragments_; }

 private:
  struct Message {
    wire::MessageKey key;                    // as posted
    wire::Signature signature;               // as posted
    base::Bytes bytes;                       // the caller's, or `copy`
    std::vector<uint8_t> copy;               // owned bytes of a copied message
    Token token = 0;                         // as posted; meaningless for copied messages
    bool is_copied = false;                  // its end is not reported
    bool is_eager = false;                   // charged to the credit
    bool is_announced = false;               // counted
    bool is_waiting = false;                 // for credit or a pull; its id is in waiting_
    bool needs_announcement = false;         // a request to send is to go out
    bool is_passed_on = false;               // as posted
    bool is_queued = false;                  // its id is in the queue_of it
    uint64_t granted = 0;                    // bytes from the start that may be sent
    uint64_t next_offset = 0;                // first byte that was never sent
    bool empty_sent = false;                 // an empty message went out
    base::RangeSet acked;                    // bytes the peer has
    std::deque<base::RangeSet::Range> lost;  // to be sent again; may overlap `acked`
    bool announcement_sent = false;          // the peer knows of it, or will
    bool is_begun() const { return next_offset > 0 || empty_sent; }
    bool is_small() const { return bytes.size() <= kCopiedMessageBytesMax; }
    bool has_next() const {
      return !lost.empty() || needs_announcement || next_offset < granted ||
             (bytes.empty() && !empty_sent && !is_waiting);
    }
    bool is_whole() const {  // went out to its end
      return bytes.empty() ? empty_sent : next_offset == bytes.size();
    }
  };

  // Takes what the message needs to go out or to be announced; false when there is no credit.
  bool take_credit(Message& message);
  void give_credit_back(const Message& message);
  void serve_waiting();
  template <typename Predicate>
  void erase_if(Predicate is_over);
  void enqueue(uint64_t id, Message& message, bool in_front);
  std::deque<uint64_t>& queue_of(const Message& message) {
    if (message.is_small()) return small_;
    return message.is_passed_on ? passed_on_ : large_;
  }
  std::optional<wire::DataFrame> next_from(std::deque<uint64_t>& queue, size_t room);
  std::optional<wire::DataFrame> next_large(size_t room);
  std::optional<wire::DataFrame> fragment_of(uint64_t id, Message& message, size_t room);
  void erase(std::unordered_map<uint64_t, Message>::iterator at);

  std::unordered_map<uint64_t, Message> messages_;     // by message id, until delivered
  std::map<wire::MessageKey, uint64_t> by_key_;        // those that wait for a grant or a pull
  std::map<wire::MessageKey, uint64_t> early_grants_;  // granted bytes of messages not yet posted
  std::unordered_map<Token, uint64_t> by_token_;       // those that report delivery
  base::RangeSet grants_seen_;                         // ids of the grants that came
  std::deque<uint64_t> small_;                         // ids with something to send
  std::deque<uint64_t> passed_on_;                     // likewise
  std::deque<uint64_t> large_;                         // likewise
  // Bytes that large_ had more than passed_on_ while both had something; at most kOthersLead and
  // one fragment.
  uint64_t others_lead_ = 0;
  uint64_t next_id_ = 0;                      // never reused on this connection
  uint64_t eager_limit_ = kEagerWindow;       // cumulative, from the peer
  uint64_t eager_charged_ = 0;                // cumulative, never above eager_limit_
  uint64_t announced_limit_ = kAnnouncedMax;  // cumulative, from the peer
  uint64_t announced_ = 0;                    // cumulative, never above announced_limit_
  std::deque<uint64_t> waiting_;              // ids that wait for credit; some no longer do
  uint64_t resent_bytes_ = 0;                 // payload sent again
  uint64_t resent_fragments_ = 0;             // fragments sent again
};

}  // namespace securefabric::transport
