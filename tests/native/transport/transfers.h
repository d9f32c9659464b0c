// Messages from node 0 to node 1 of an EndpointPair, and what must come of them.
#pragma once

#include "endpoint_pair.h"

namespace securefabric::transport {

constexpr size_t kLarge = 3'000'000;

// Posts sends on node 0 and receives on node 1, and knows what must come of it.
class Transfers {
 public:
  explicit Transfers(EndpointPair& pair) : pair_(pair) {}

  void send(const wire::MessageKey& key, size_t size) {
    contents_.push_back(pattern(size, contents_.size() + 1));
    const Token token = contents_.size();
    pair_.endpoint(0).post_send(EndpointPair::rank(1), {key, signature(), contents_.back(), token});
    large_ += size > kCopiedMessageBytesMax;
  }
  // Receives in the order of sends. Large collective ones are granted unasked.
  void receive(const wire::MessageKey& key, size_t size) {
    sinks_.push_back(std::make_unique<BufferSink>(size));
    const PostedReceive receive{sinks_.size(), sinks_.back().get(), size, signature()};
    auto& matcher = pair_.node(1).matcher;
    const auto held = std::find_if(matcher.held.begin(), matcher.held.end(),
                                   [&key](const auto& one) { return one.key == key; });
    if (held != matcher.held.end()) {
      pair_.endpoint(1).attach_receive(EndpointPair::rank(0), held->message_id, receive);
      return;
    }
    matcher.post(EndpointPair::rank(0), key, receive);
    if (key.channel == wire::Channel::kCollective && size > kEagerMessageBytesMax) {
      pair_.endpoint(1).post_grant(EndpointPair::rank(0), key, size);
    }
  }
  void both(const wire::MessageKey& key, size_t size) {
    receive(key, size);
    send(key, size);
  }
  bool is_done() const {
    return pair_.events_of<ReceiveCompleted>(1).size() == sinks_.size() &&
           pair_.events_of<SendDelivered>(0).size() == large_ && pair_.endpoint(0).is_drained();
  }
  bool run(base::Duration limit = base::Duration::seconds(5)) {
    return pair_.run_until([this] { return is_done(); }, limit);
  }
  // Every byte is where it belongs.
  bool is_intact() const {
    for (size_t i = 0; i < sinks_.size(); ++i) {
      if (sinks_[i]->bytes() != contents_[i]) return false;
    }
    return sinks_.size() == contents_.size();
  }

 private:
  EndpointPair& pair_;
  std::deque<ByteVector> contents_;                 // of the messages; must stay where they are
  std::vector<std::unique_ptr<BufferSink>> sinks_;  // where they go, in the order of receives
  size_t large_ = 0;                                // messages that report delivery
};

inline size_t failures(EndpointPair& pair) {
  return pair.events_of<PeerFailed>(0).size() + pair.events_of<PeerFailed>(1).size();
}

}  // namespace securefabric::transport
