#include "transport/message_send.h"

#include <algorithm>

#include "base/check.h"

namespace securefabric::transport {

using wire::DataFrame;

namespace {

// Of a queue of tiny messages, which could be long, so many are looked at for each burst.
constexpr size_t kQueueWalkMax = 1024;

// How much of a message a grant lets go. A grant of less than the message (the ends disagree about
// its length) is cut to whole elements, or its last bytes could never be sent.
uint64_t grantable(uint64_t granted, uint64_t length) {
  return granted >= length ? length : granted - granted % kFragmentAlignment;
}

}  // namespace

bool SendQueue::post(const SendRequest& request) {
  const uint64_t id = next_id_++;
  Message& message = messages_[id];
  message.key = request.key;
  message.signature = request.signature;
  message.token = request.token;
  message.is_passed_on = request.is_passed_on;
  message.bytes = request.bytes;
  const uint64_t length = request.bytes.size();
  if (is_granted_unasked(request.key, length)) {
    if (const auto early = early_grants_.find(request.key); early != early_grants_.end()) {
      message.granted = grantable(early->second, length);
      early_grants_.erase(early);
    } else {
      by_key_[request.key] = id;
    }
  } else if (!waiting_.empty() || !take_credit(message)) {
    message.is_waiting = true;
    waiting_.push_back(id);
    by_key_[request.key] = id;
  } else if (!message.is_eager) {
    by_key_[request.key] = id;
  }
  // A copy of what waits would take memory that nothing bounds.
  message.is_copied = message.is_eager && length <= kCopiedMessageBytesMax;
  if (message.is_copied) {
    message.copy = base::to_vector(request.bytes);
    message.bytes = message.copy;
  } else {
    by_token_[request.token] = id;
  }
  enqueue(id, message, /*in_front=*/false);
  return message.is_copied;
}

bool SendQueue::take_credit(Message& message) {
  const uint64_t length = message.bytes.size();
  if (length <= kEagerMessageBytesMax && eager_charged_ + eager_charge(length) <= eager_limit_) {
    message.is_eager = true;
    message.granted = length;
    eager_charged_ += eager_charge(length);
    return true;
  }
  if (announced_ >= announced_limit_) return false;
  ++announced_;
  message.is_announced = true;
  message.needs_announcement = length > 0;
  return true;
}

// Of a message that has not begun: the receiver does not know of it either.
void SendQueue::give_credit_back(const Message& message) {
  if (message.is_eager) eager_charged_ -= eager_charge(message.bytes.size());
  if (message.is_announced) --announced_;
}

void SendQueue::enqueue(uint64_t id, Message& message, bool in_front) {
  if (message.is_queued || !message.has_next()) return;
  message.is_queued = true;
  if (in_front) {
    queue_of(message).push_front(id);
  } else {
    queue_of(message).push_back(id);
  }
}

void SendQueue::erase(std::unordered_map<uint64_t, Message>::iterator at) {
  SF_CHECK(at != messages_.end());
  const auto& [id, message] = *at;
  if (message.is_queued) std::erase(queue_of(message), id);
  if (!message.is_copied) by_token_.erase(message.token);
  if (const auto key = by_key_.find(message.key); key != by_key_.end() && key->second == id) {
    by_key_.erase(key);
  }
  messages_.erase(at);
}

void SendQueue::withdraw_group(uint64_t group) {
  erase_if([group](const Message& m) { return m.key.group == group && !m.is_copied; });
  std::erase_if(early_grants_, [group](const auto& grant) { return grant.first.group == group; });
}

void SendQueue::drop_group(uint64_t group) {
  erase_if([group](const Message& m) { return m.key.group == group && !m.is_begun(); });
  std::erase_if(early_grants_, [group](const auto& grant) { return grant.first.group == group; });
}

// One walk over all, however many are to go.
template <typename Predicate>
void SendQueue::erase_if(Predicate is_over) {
  const auto goes = [&](uint64_t id) {
    const auto at = messages_.find(id);
    return at == messages_.end() || is_over(at->second);
  };
  for (auto* queue : {&small_, &passed_on_, &large_, &waiting_}) std::erase_if(*queue, goes);
  std::erase_if(by_key_, [&](const auto& entry) { return goes(entry.second); });
  std::erase_if(by_token_, [&](const auto& entry) { return goes(entry.second); });
  std::erase_if(messages_, [&](const auto& entry) {
    if (!is_over(entry.second)) return false;
    const Message& message = entry.second;
    if (!message.is_begun() && !message.announcement_sent) give_credit_back(message);
    return true;
  });
  serve_waiting();
}

bool SendQueue::is_drained_of(uint64_t group) const {
  return std::none_of(messages_.begin(), messages_.end(),
                      [group](const auto& entry) { return entry.second.key.group == group; });
}

std::vector<Token> SendQueue::sent_as_a_whole() const {
  std::vector<Token> tokens;
  for (const auto& [token, id] : by_token_) {
    if (messages_.at(id).is_whole()) tokens.push_back(token);
  }
  std::sort(tokens.begin(), tokens.end());
  return tokens;
}

void SendQueue::clear() {
  messages_.clear();
  by_key_.clear();
  early_grants_.clear();
  by_token_.clear();
  small_.clear();
  passed_on_.clear();
  large_.clear();
  waiting_.clear();
}

base::Status SendQueue::on_grant(const wire::GrantFrame& grant) {
  if (grants_seen_.count() >= kFinishedRangesMax) {
    return base::Error{base::ErrorCode::kLimit, "grants that never arrived are too many"};
  }
  bool is_new = false;
  grants_seen_.insert(grant.grant_id, grant.grant_id + 1,
                      [&is_new](uint64_t, uint64_t) { is_new = true; });
  if (!is_new) return base::ok_status();
  const auto at = by_key_.find(grant.key);
  if (at == by_key_.end()) {
    // The answer to a request that a pull has overtaken, or a pull for what is on its way or not
    // posted yet: the receiver asks again.
    if (grant.is_pull || !is_granted_unasked(grant.key, grant.granted)) return base::ok_status();
    // Forgetting one would leave its message waiting for ever.
    if (early_grants_.size() >= kEarlyGrantsMax) {
      return base::Error{base::ErrorCode::kLimit,
                         "it granted too many messages that this rank has not posted"};
    }
    early_grants_[grant.key] = grant.granted;
    return base::ok_status();
  }
  Message& message = messages_.at(at->second);
  message.granted = std::max(message.granted, grantable(grant.granted, message.bytes.size()));
  message.needs_announcement = false;
  message.is_waiting = false;
  enqueue(at->second, message, /*in_front=*/false);
  if (message.granted == message.bytes.size()) by_key_.erase(at);
  return base::ok_status();
}

void SendQueue::on_credit(uint64_t eager_limit, uint64_t announced_limit) {
  eager_limit_ = std::max(eager_limit_, eager_limit);
  announced_limit_ = std::max(announced_limit_, announced_limit);
  serve_waiting();
}

void SendQueue::serve_waiting() {
  for (; !waiting_.empty(); waiting_.pop_front()) {
    const auto at = messages_.find(waiting_.front());
    if (at == messages_.end() || !at->second.is_waiting) continue;  // it was pulled
    Message& message = at->second;
    if (!take_credit(message)) return;
    message.is_waiting = false;
    if (message.is_eager) by_key_.erase(message.key);
    enqueue(at->first, message, /*in_front=*/false);
  }
}

void SendQueue::on_lost(const SentData& data) {
  const auto at = messages_.find(data.message_id);
  if (at == messages_.end()) return;
  Message& message = at->second;
  if (data.length > 0) {
    if (message.acked.covers(data.offset, data.offset + data.length)) return;
    message.lost.push_back({data.offset, data.offset + data.length});
  } else if (message.bytes.empty()) {
    message.empty_sent = false;
  } else {
    message.needs_announcement = message.granted == 0;  // else the peer has heard of it
  }
  enqueue(at->first, message, /*in_front=*/true);
}

std::optional<Token> SendQueue::on_acked(const SentData& data) {
  const auto at = messages_.find(data.message_id);
  if (at == messages_.end()) return std::nullopt;
  Message& message = at->second;
  if (data.length == 0 && !message.bytes.empty()) return std::nullopt;  // an announcement
  message.acked.insert(data.offset, data.offset + data.length);
  if (!message.acked.covers(0, message.bytes.size())) return std::nullopt;
  const std::optional<Token> token =
      message.is_copied ? std::nullopt : std::optional<Token>(message.token);
  erase(at);
  return token;
}

uint64_t SendQueue::sendable_bytes(uint64_t enough) const {
  uint64_t total = 0;
  size_t walked = 0;
  for (const auto* queue : {&small_, &passed_on_, &large_}) {
    for (const uint64_t id : *queue) {
      if (total >= enough || ++walked > kQueueWalkMax) return total;
      const Message& message = messages_.at(id);
      total += message.granted - std::min(message.granted, message.next_offset);
      for (const auto& range : message.lost) total += range.end - range.begin;
    }
  }
  return total;
}

std::optional<DataFrame> SendQueue::next(size_t room) {
  if (auto frame = next_from(small_, room)) return frame;
  return next_large(room);
}

std::optional<DataFrame> SendQueue::next_large(size_t room) {
  const bool has_both = !passed_on_.empty() && !large_.empty();
  const bool has_lost = has_both && !messages_.at(large_.front()).lost.empty();
  const bool is_others_turn = passed_on_.empty() || has_lost || others_lead_ < kOthersLead;
  if (is_others_turn) {
    if (auto frame = next_from(large_, room)) {
      if (has_both) others_lead_ += frame->bytes.size();
      return frame;
    }
  }
  auto frame = next_from(passed_on_, room);
  if (!frame) return next_from(large_, room);
  others_lead_ -= std::min<uint64_t>(others_lead_, frame->bytes.size());
  return frame;
}

std::optional<DataFrame> SendQueue::next_from(std::deque<uint64_t>& queue, size_t room) {
  while (!queue.empty()) {
    const uint64_t id = queue.front();
    Message& message = messages_.at(id);
    auto frame = fragment_of(id, message, room);
    if (message.has_next()) return frame;
    message.is_queued = false;
    queue.pop_front();
    // Nothing came out when all that was queued had been acknowledged in the meantime.
    if (frame) return frame;
  }
  return std::nullopt;
}

std::optional<DataFrame> SendQueue::fragment_of(uint64_t id, Message& message, size_t room) {
  while (!message.lost.empty() &&
         message.acked.covers(message.lost.front().begin, message.lost.front().end)) {
    message.lost.pop_front();
  }
  const bool is_resend = !message.lost.empty();
  uint64_t begin = is_resend ? message.lost.front().begin : message.next_offset;
  uint64_t end = is_resend ? message.lost.front().end : message.granted;
  if (message.needs_announcement && !is_resend) begin = end = 0;
  const bool has_nothing = begin >= end && !message.needs_announcement && !message.bytes.empty();
  if (has_nothing) return std::nullopt;

  DataFrame frame;
  frame.key = message.key;
  frame.message_id = id;
  frame.message_length = message.bytes.size();
  frame.offset = begin;
  if (begin == 0) frame.signature = message.signature;
  frame.is_eager = message.is_eager;
  frame.is_announced = message.is_announced;
  const size_t overhead = encoded_bytes(frame);
  if (room < overhead) return std::nullopt;
  uint64_t length = std::min<uint64_t>(end - begin, std::min<size_t>(room - overhead, 0xFFFF));
  if (begin + length < message.bytes.size()) length -= length % kFragmentAlignment;
  if (length == 0 && end > begin) return std::nullopt;
  frame.bytes = message.bytes.subspan(begin, length);
  frame.wants_ack_now = !message.is_copied && begin + length == message.bytes.size();

  if (is_resend) {
    resent_bytes_ += length;
    ++resent_fragments_;
    message.lost.front().begin += length;
    if (message.lost.front().begin == message.lost.front().end) message.lost.pop_front();
  } else if (message.needs_announcement) {
    message.needs_announcement = false;
    message.announcement_sent = true;
  } else {
    message.next_offset += length;
    message.empty_sent = true;
  }
  return frame;
}

}  // namespace securefabric::transport
