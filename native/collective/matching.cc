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

void CollectiveMatching::drop_group(uint64_t group) {
  const auto of_group = [group](const auto& entry) { return entry.first.group == group; };
  std::erase_if(posted_, of_group);
  std::erase_if(held_, of_group);
}

void PointToPointMatching::post(uint64_t group, uint32_t tag, std::optional<Rank> source,
                                const PostedReceive& receive) {
  queues_[{group, tag}].posted.push_back({source, receive});
}

void PointToPointMatching::withdraw(uint64_t group, uint32_t tag, transport::Token token) {
  const auto at = queues_.find({group, tag});
  if (at == queues_.end()) return;
  std::erase_if(at->second.posted, [token](const Posted& p) { return p.receive.token == token; });
}

std::optional<PostedReceive> PointToPointMatching::offer(uint64_t group, uint32_t tag,
                                                         uint64_t sequence,
                                                         const HeldMessage& message) {
  TagQueue& queue = queues_[{group, tag}];
  Lane& lane = queue.lanes[message.peer];
  if (sequence != lane.next_sequence) {
    if (sequence > lane.next_sequence) lane.waiting[sequence] = message;
    return std::nullopt;
  }
  const auto posted = std::find_if(queue.posted.begin(), queue.posted.end(), [&](const Posted& p) {
    return !p.source || *p.source == message.peer;
  });
  if (posted == queue.posted.end()) {
    lane.waiting[sequence] = message;
    return std::nullopt;
  }
  const PostedReceive receive = posted->receive;
  queue.posted.erase(posted);
  lane.waiting.erase(sequence);
  ++lane.next_sequence;
  return receive;
}

std::optional<PointToPointMatching::Pair> PointToPointMatching::take_pair(uint64_t group,
                                                                          uint32_t tag) {
  const auto at = queues_.find({group, tag});
  if (at == queues_.end()) return std::nullopt;
  TagQueue& queue = at->second;
  for (auto posted = queue.posted.begin(); posted != queue.posted.end(); ++posted) {
    for (auto& [peer, lane] : queue.lanes) {
      if (posted->source && *posted->source != peer) continue;
      const auto waiting = lane.waiting.find(lane.next_sequence);
      if (waiting == lane.waiting.end()) continue;
      Pair pair{posted->receive, waiting->second};
      lane.waiting.erase(waiting);
      ++lane.next_sequence;
      queue.posted.erase(posted);
      return pair;
    }
  }
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
