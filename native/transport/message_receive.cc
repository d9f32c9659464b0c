#include "transport/message_receive.h"

#include <algorithm>

#include "base/check.h"

namespace securefabric::transport {

using base::Error;
using base::ErrorCode;
using base::Status;
using wire::DataFrame;

namespace {

Error violation(const char* what) {
  return Error{ErrorCode::kPeerLost, std::string("it broke the protocol: ") + what};
}

// What FragmentSink promises to whoever reduces elements.
bool is_aligned(const DataFrame& frame) {
  const bool ends_well =
      frame.end() % kFragmentAlignment == 0 || frame.end() == frame.message_length;
  return frame.offset % kFragmentAlignment == 0 && ends_well;
}

}  // namespace

Status InboundMessages::on_data(const DataFrame& frame, Effects& effects) {
  if (!is_aligned(frame)) return violation("a fragment that splits an element");
  if (finished_.contains(frame.message_id)) {
    ++counters_.duplicate_fragments;
    return base::ok_status();
  }
  auto at = messages_.find(frame.message_id);
  const bool is_new = at == messages_.end();
  if (is_new) {
    if (Status status = admit(frame, at); !status) return status;
  }
  Message& message = at->second;
  if (message.key != frame.key || message.length != frame.message_length) {
    return violation("two fragments of one message disagree");
  }
  const bool brings_signature = frame.signature && !message.signature;
  if (brings_signature) message.signature = frame.signature;
  if (message.receive) {
    if (brings_signature) check_agreement(message, effects);
  } else if (is_new || brings_signature) {
    const bool is_wanted = offer(frame.message_id, message, effects);
    if (is_new && !message.receive) ++counters_.unexpected_messages;
    if (!is_wanted) {
      finish(at);
      return base::ok_status();
    }
  }
  const bool is_request = frame.bytes.empty() && frame.message_length > 0;
  if (is_request) {
    if (message.receive) grant(message, effects);
    return base::ok_status();
  }
  // What this rank has neither charged nor asked for would take its memory without bound. (Of what
  // it asked for and no longer wants, the matcher says so.)
  const bool is_paid_for = message.is_eager || (message.is_announced && message.length == 0);
  if (!message.receive && !is_paid_for) return violation("bytes that were not granted");
  place(message, frame);
  if (message.received.count() > kMessageRangesMax) return violation("message with holes");
  finish_if_complete(at, effects);
  return base::ok_status();
}

Status InboundMessages::admit(const DataFrame& frame, Messages::iterator& at) {
  if (finished_.count() >= kFinishedRangesMax) return violation("message ids with holes");
  if (frame.message_id == UINT64_MAX) return violation("a message id beyond all");
  if (frame.is_eager) {
    if (frame.message_length > kEagerMessageBytesMax) return violation("an eager message too long");
    eager_charged_ += eager_charge(frame.message_length);
    if (eager_charged_ > eager_limit()) return violation("it overdrew its eager credit");
  } else if (frame.is_announced) {
    if (++announced_ > announced_limit()) return violation("it announced too many messages");
  } else if (frame.bytes.empty() && frame.message_length > 0) {
    return violation("a request to send that was not counted");
  }
  at = messages_.try_emplace(frame.message_id).first;
  Message& message = at->second;
  message.key = frame.key;
  message.length = frame.message_length;
  message.is_eager = frame.is_eager;
  message.is_announced = frame.is_announced;
  return base::ok_status();
}

bool InboundMessages::offer(uint64_t id, Message& message, Effects& effects) {
  const wire::Signature* signature = message.signature ? &*message.signature : nullptr;
  const Match match = matcher_.match(peer_, id, message.key, message.length, signature);
  if (match.verdict == Match::Verdict::kPosted) bind(message, match.receive, effects);
  return match.verdict != Match::Verdict::kDiscard;
}

void InboundMessages::bind(Message& message, const PostedReceive& receive, Effects& effects) {
  SF_CHECK(!message.receive);
  message.receive = receive;
  check_agreement(message, effects);
  if (message.is_discarded) return;
  for (const auto& range : message.received.ranges()) {
    receive.sink->place(range.begin,
                        base::Bytes(message.held).subspan(range.begin, range.end - range.begin));
  }
  message.held = {};
}

void InboundMessages::check_agreement(Message& message, Effects& effects) {
  const PostedReceive& receive = *message.receive;
  const bool same_signature = !message.signature || *message.signature == receive.signature;
  if (message.length == receive.length && same_signature) return;
  message.is_discarded = true;
  // Wait for the fragment that says what the peer believes, so that the error can name both sides.
  if (!message.signature || message.is_reported) return;
  message.is_reported = true;
  effects.events.push_back(
      MessageMismatch{peer_, receive.token, message.key, message.length, message.signature});
}

void InboundMessages::place(Message& message, const DataFrame& frame) {
  const bool is_held = !message.receive;
  if (is_held && message.held.size() < message.length) message.held.resize(message.length);
  bool any_new = frame.bytes.empty();
  message.received.insert(frame.offset, frame.end(), [&](uint64_t begin, uint64_t end) {
    any_new = true;
    const base::Bytes fresh = frame.bytes.subspan(begin - frame.offset, end - begin);
    counters_.message_bytes_received += fresh.size();
    if (is_held) {
      std::copy(fresh.begin(), fresh.end(), message.held.begin() + static_cast<ptrdiff_t>(begin));
    } else if (!message.is_discarded) {
      message.receive->sink->place(begin, fresh);
    }
  });
  if (!any_new) ++counters_.duplicate_fragments;
}

void InboundMessages::finish_if_complete(Messages::iterator at, Effects& effects) {
  Message& message = at->second;
  if (!message.receive || !message.received.covers(0, message.length)) return;
  if (!message.is_discarded) effects.events.push_back(ReceiveCompleted{message.receive->token});
  finish(at);
}

// Whatever still comes for this message is dropped by its id.
void InboundMessages::finish(Messages::iterator at) {
  if (at->second.is_eager) eager_freed_ += eager_charge(at->second.length);
  if (at->second.is_announced) ++announced_freed_;
  if (is_granted_unasked(at->second.key, at->second.length)) {
    if (const auto granted = granted_.find(at->second.key.group); granted != granted_.end()) {
      --granted_total_;
      if (--granted->second == 0) granted_.erase(granted);
    }
  }
  finished_.insert(at->first, at->first + 1);
  messages_.erase(at);
}

void InboundMessages::attach(uint64_t message_id, const PostedReceive& receive, Effects& effects) {
  const auto at = messages_.find(message_id);
  if (at == messages_.end()) return;
  Message& message = at->second;
  bind(message, receive, effects);
  const bool was_request = !message.is_eager && message.length > 0 && message.received.empty();
  if (was_request) grant(message, effects);
  finish_if_complete(at, effects);
}

void InboundMessages::grant(Message& message, Effects& effects) {
  if (message.is_granted) return;
  message.is_granted = true;
  effects.grants.push_back({message.key, message.length, 0});
}

void InboundMessages::withdraw_group(uint64_t group) {
  finish_if([group](const Message& m) { return m.key.group == group && m.receive; });
  forget_grants(group);
}

void InboundMessages::drop_group(uint64_t group) {
  finish_if([group](const Message& m) { return m.key.group == group; });
  forget_grants(group);
}

void InboundMessages::forget_grants(uint64_t group) {
  const auto at = granted_.find(group);
  if (at == granted_.end()) return;
  granted_total_ -= at->second;
  granted_.erase(at);
}

template <typename Predicate>
void InboundMessages::finish_if(Predicate is_over) {
  for (auto at = messages_.begin(); at != messages_.end();) {
    const auto next = std::next(at);
    if (is_over(at->second)) finish(at);
    at = next;
  }
}

void InboundMessages::keep_complete() {
  std::erase_if(messages_, [](const auto& entry) {
    return !entry.second.received.covers(0, entry.second.length);
  });
}

void InboundMessages::clear() {
  messages_.clear();
}

}  // namespace securefabric::transport
