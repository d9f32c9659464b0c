#include "collective/matching.h"

#include <algorithm>
#include <limits>

namespace securefabric::collective {

using base::Rank;
using transport::PostedReceive;

std::optional<HeldMessage> CollectiveMatching::post(const Key& key, const PostedReceive& receive) {
  if (const auto held = held_.find(key); held != held_.end()) {
    HeldMessage message = held->second;
    held_.erase(held);
    return message;
  }
  posted_[key] = receive;
  return std::nullopt;
}

std::optional<PostedReceive> CollectiveMatching::take(const Key& key, const HeldMessage& message) {
  if (const auto posted = posted_.find(key); posted != posted_.end()) {
    const PostedReceive receive = posted->second;
    posted_.erase(posted);
    return receive;
  }
  held_[key] = message;
  return std::nullopt;
}

const HeldMessage* CollectiveMatching::held_at(const Key& key) const {
  const auto at = held_.find(key);
  return at == held_.end() ? nullptr : &at->second;
}

std::vector<std::pair<CollectiveMatching::Key, HeldMessage>> CollectiveMatching::held_for(
    uint64_t group, uint64_t operation) const {
  std::vector<std::pair<Key, HeldMessage>> found;
  for (auto at = held_.lower_bound(Key{group, operation, Rank{0}, 0});
       at != held_.end() && at->first.group == group && at->first.operation == operation; ++at) {
    found.push_back(*at);
  }
  return found;
}

void CollectiveMatching::withdraw_group(uint64_t group) {
  std::erase_if(posted_, [group](const auto& entry) { return entry.first.group == group; });
}

void CollectiveMatching::drop_group(uint64_t group) {
  withdraw_group(group);
  std::erase_if(held_, [group](const auto& entry) { return entry.first.group == group; });
}

void PointToPointMatching::post(uint64_t group, uint32_t tag, std::optional<Rank> source,
                                const PostedReceive& receive) {
  TagQueue& queue = queues_[{group, tag}];
  queue.posted[source].push_back({queue.next_order++, receive});
}

void PointToPointMatching::withdraw_group(uint64_t group) {
  for (auto& [key, queue] : queues_) {
    if (key.first == group) queue.posted.clear();
  }
}

std::optional<PostedReceive> PointToPointMatching::take_receive(TagQueue& queue, Rank sender) {
  auto first = queue.posted.find(Source(sender));
  const auto any = queue.posted.find(Source());
  const bool is_any_first =
      any != queue.posted.end() &&
      (first == queue.posted.end() || any->second.front().order < first->second.front().order);
  if (is_any_first) first = any;
  if (first == queue.posted.end()) return std::nullopt;
  const PostedReceive receive = first->second.front().receive;
  first->second.pop_front();
  if (first->second.empty()) queue.posted.erase(first);
  return receive;
}

std::optional<PostedReceive> PointToPointMatching::offer(uint64_t group, uint32_t tag,
                                                         uint64_t sequence,
                                                         const HeldMessage& message) {
  TagQueue& queue = queues_[{group, tag}];
  Lane& lane = queue.lanes[message.peer];
  if (sequence < lane.next_sequence) return std::nullopt;
  std::optional<PostedReceive> receive;
  if (sequence == lane.next_sequence) receive = take_receive(queue, message.peer);
  if (!receive) {
    lane.waiting[sequence] = message;
    return std::nullopt;
  }
  lane.waiting.erase(sequence);
  ++lane.next_sequence;
  return receive;
}

std::optional<PointToPointMatching::Pair> PointToPointMatching::take_pair(uint64_t group,
                                                                          uint32_t tag) {
  const auto at = queues_.find({group, tag});
  if (at == queues_.end() || at->second.posted.empty()) return std::nullopt;
  for (auto& [peer, lane] : at->second.lanes) {
    const auto waiting = lane.waiting.find(lane.next_sequence);
    if (waiting == lane.waiting.end()) continue;
    const auto receive = take_receive(at->second, peer);
    if (!receive) continue;
    const Pair pair{*receive, waiting->second};
    lane.waiting.erase(waiting);
    ++lane.next_sequence;
    return pair;
  }
  return std::nullopt;
}

std::optional<uint64_t> PointToPointMatching::awaited_by(uint64_t group, uint32_t tag, Rank source,
                                                         transport::Token receive) const {
  const auto at = queues_.find({group, tag});
  if (at == queues_.end() || at->second.posted.contains(Source())) return std::nullopt;
  const auto posted = at->second.posted.find(Source(source));
  if (posted == at->second.posted.end()) return std::nullopt;
  const auto lane = at->second.lanes.find(source);
  const uint64_t next = lane == at->second.lanes.end() ? 0 : lane->second.next_sequence;
  if (posted->second.front().receive.token == receive) return next;
  if (posted->second.back().receive.token == receive) return next + posted->second.size() - 1;
  return std::nullopt;
}

void PointToPointMatching::drop_strangers(uint64_t group, const std::vector<Rank>& members) {
  const auto is_stranger = [&members](const auto& lane) {
    return std::find(members.begin(), members.end(), lane.first) == members.end();
  };
  for (auto& [key, queue] : queues_) {
    if (key.first == group) std::erase_if(queue.lanes, is_stranger);
  }
}

void PointToPointMatching::drop_group(uint64_t group) {
  std::erase_if(queues_, [group](const auto& entry) { return entry.first.first == group; });
}

}  // namespace securefabric::collective
