// Two ranks that exchange messages while the input attacks them. The input is a program of
// operations, one byte each with their arguments behind them:
//
//   junk, forged headers        must be dropped, and nothing may be sent because of them
//   drop, flip, cut, duplicate  the next datagrams on the wire
//   rogue                       a third rank with valid keys says anything at all
//   post, attach, run           honest work, so that there is state to attack
//
// Whatever happens, both honest ranks stay connected and deliver every message once the attack is
// over; nothing crashes; no endpoint spins. endpoint_pair.h holds the checks that are always on.
#include "base/check.h"
#include "transport/endpoint_pair.h"
#include "wire/frame_samples.h"

namespace securefabric::transport {
namespace {

constexpr int kOperationsMax = 80;
constexpr size_t kMessagesMax = 12;
constexpr base::Duration kHealing = base::Duration::seconds(30);

enum class Op : uint8_t {
  kJunk,
  kForgedHeader,
  kDrop,
  kFlip,
  kCut,
  kDuplicate,
  kRogueRaw,
  kRogueFrame,
  kRogueData,
  kPost,
  kPostForRogue,
  kAttachRogue,
  kWithdrawRogue,
  kRun,
  kCount,
};

class Attack {
 public:
  explicit Attack(base::Bytes input) : input_(input), pair_(options()) {
    pair_.filter = [this](Datagram& datagram) { return tamper(datagram); };
  }

  void run() {
    SF_CHECK(pair_.join());
    rogue_.introduce();
    rogue_.say_frame(wire::ConfirmFrame{1});
    for (int i = 0; i < kOperationsMax && !input_.at_end(); ++i) {
      perform(static_cast<Op>(input_.u8() % static_cast<uint8_t>(Op::kCount)));
    }
    heal();
  }

 private:
  PairOptions options() {
    const uint8_t bits = input_.u8();
    PairOptions options;
    options.sockets = 1 + (bits & 1);
    options.paths = 1 + (bits >> 1 & 3);
    options.datagram_bytes = (bits & 8) != 0 ? kDatagramBytesMin : kDatagramBytesMax;
    // Short, but more than the input can have dropped in a row: a receiver that missed a whole
    // generation cannot follow (PROTOCOL.md §4).
    options.generation_bits = (bits & 16) != 0 ? 8 : 22;
    static_assert(kOperationsMax < 1 << 8);
    if ((bits & 32) != 0) options.epoch_limits.bytes = 20'000;
    return options;
  }

  base::Bytes take_some() { return input_.take(std::min<size_t>(input_.u8(), input_.remaining())); }
  uint8_t socket() { return static_cast<uint8_t>(input_.u8() % pair_.options().sockets); }

  void perform(Op op) {
    switch (op) {
      case Op::kJunk: return garbage(base::to_vector(take_some()));
      case Op::kForgedHeader: return garbage(forged());
      case Op::kDrop:
      case Op::kFlip:
      case Op::kCut:
      case Op::kDuplicate: pending_.push_back({op, input_.u8(), input_.u16()}); return;
      case Op::kRogueRaw: rogue_.say(take_some(), socket(), socket()); return;
      case Op::kRogueFrame: return rogue_frame();
      case Op::kRogueData: return rogue_data();
      case Op::kPost: return post();
      case Op::kPostForRogue: return post_for_rogue();
      case Op::kAttachRogue: return attach_rogue();
      case Op::kWithdrawRogue:
        pair_.endpoint(0).withdraw_group(rogue_rank(), input_.u8() % 8);
        return;
      case Op::kRun: pair_.run_for(base::Duration::micros(input_.u16())); return;
      case Op::kCount: return;
    }
  }

  static base::Rank rogue_rank() { return EndpointPair::rank(EndpointPair::kRogue); }

  // Nobody but the peers can make a datagram that opens. It must be dropped for one cause, and
  // nothing may be sent that was not to be sent anyway.
  void garbage(const ByteVector& datagram) {
    const size_t node = input_.u8() % 2;
    pair_.turn();
    Endpoint& endpoint = pair_.endpoint(node);
    const uint64_t drops_before = pair_.all_drops(node);
    endpoint.handle_datagram(pair_.now(), socket(), false, datagram);
    SF_CHECK(pair_.all_drops(node) == drops_before + 1);
    Transmit transmit;
    SF_CHECK(!endpoint.poll_transmit(pair_.now(), transmit));
  }

  ByteVector forged() {
    const wire::Header header{base::PathId{input_.u16()},
                              base::Spi{0x1000u + (input_.u8() & 3) + 0x1000u * (input_.u8() & 1)},
                              (input_.u8() & 1) != 0 ? input_.u64() : input_.u8()};
    ByteVector datagram(wire::kHeaderBytes);
    wire::encode_header(header, datagram);
    const base::Bytes body = take_some();
    datagram.insert(datagram.end(), body.begin(), body.end());
    return datagram;
  }

  // Frames that the decoder accepts, with every field at random.
  void rogue_frame() {
    base::Random random(input_.u16());
    ByteVector plaintext;
    for (uint64_t n = 1 + random.below(4); n > 0; --n) {
      wire::append(wire::random_frame(random), plaintext);
    }
    rogue_.say(plaintext, socket(), socket());
  }

  // Fragments of few messages with small numbers, so that they meet each other and posted receives.
  void rogue_data() {
    const uint8_t bits = input_.u8();
    wire::DataFrame frame;
    frame.key = (bits & 1) != 0 ? collective_key(input_.u8() % 4) : point_to_point_key(0);
    frame.message_id = input_.u8() % 8;
    frame.is_eager = (bits & 2) != 0;
    frame.wants_ack_now = (bits & 4) != 0;
    frame.is_announced = !frame.is_eager && (bits & 16) != 0;
    frame.message_length = input_.u16() % 600;
    const uint64_t fragments = frame.message_length / kFragmentAlignment;
    frame.offset = fragments == 0 ? 0 : input_.u8() % fragments * kFragmentAlignment;
    const uint64_t rest = frame.message_length - frame.offset;
    const uint64_t length = std::min<uint64_t>(rest, input_.u8() * uint64_t{4});
    if (frame.offset == 0 || length == 0) {
      frame.offset = 0;
      frame.signature = signature((bits & 8) != 0 ? 2 : 1);
    }
    frame.bytes = wire::sample_bytes().first(length);
    rogue_.say_data(frame, 0, 0);
  }

  void post() {
    if (contents_.size() == kMessagesMax) return;
    const size_t size = input_.u16() * (input_.u8() % 4 == 0 ? size_t{8} : size_t{1});
    const uint64_t operation = contents_.size();
    const auto key =
        (input_.u8() & 1) != 0 ? collective_key(operation) : point_to_point_key(operation);
    contents_.push_back(pattern(size, operation + 1));
    sinks_.push_back(std::make_unique<BufferSink>(size));
    pair_.node(1).matcher.post(EndpointPair::rank(0), key,
                               {100 + operation, sinks_.back().get(), size, signature()});
    if (key.channel == wire::Channel::kCollective && size > kEagerMessageBytesMax) {
      pair_.endpoint(1).post_grant(EndpointPair::rank(0), key, size);
    }
    pair_.endpoint(0).post_send(EndpointPair::rank(1),
                                {key, signature(), contents_.back(), 100 + operation});
  }

  PostedReceive receive_for_rogue() {
    const size_t length = input_.u16() % 600;
    rogue_sinks_.push_back(std::make_unique<BufferSink>(length));
    return {input_.u8() % uint64_t{8}, rogue_sinks_.back().get(), length, signature()};
  }
  void post_for_rogue() {
    pair_.node(0).matcher.post(rogue_rank(), collective_key(input_.u8() % 4), receive_for_rogue());
  }
  void attach_rogue() {
    auto& held = pair_.node(0).matcher.held;
    const auto at = std::find_if(held.begin(), held.end(),
                                 [](const auto& one) { return one.peer == rogue_rank(); });
    if (at == held.end()) return;
    const uint64_t id = at->message_id;
    // A matcher attaches once, and forgets whatever else it was told about the message.
    std::erase_if(
        held, [id](const auto& one) { return one.peer == rogue_rank() && one.message_id == id; });
    if (!attached_.insert(id).second) return;
    pair_.endpoint(0).attach_receive(rogue_rank(), id, receive_for_rogue());
  }

  struct Tampering {
    Op op;
    uint8_t value;  // to flip with, or how much to delay
    uint16_t at;    // byte
  };
  bool tamper(Datagram& datagram) {
    if (pending_.empty() || datagram.to == EndpointPair::kRogue) return true;
    const Tampering tampering = pending_.front();
    pending_.pop_front();
    const size_t at = tampering.at % datagram.bytes.size();
    switch (tampering.op) {
      case Op::kDrop: return false;
      case Op::kFlip: datagram.bytes[at] ^= tampering.value; return true;
      case Op::kCut: datagram.bytes.resize(at); return true;
      default:
        pair_.inject(datagram.from, datagram.to, datagram.socket, datagram.bytes,
                     base::Duration::micros(tampering.value * 10));
        return true;
    }
  }

  void heal() {
    pending_.clear();
    const bool is_done = pair_.run_until([this] { return is_delivered(); }, kHealing);
    SF_CHECK(is_done);
    for (size_t i = 0; i < sinks_.size(); ++i) SF_CHECK(sinks_[i]->bytes() == contents_[i]);
    for (const PeerFailed& failed : pair_.events_of<PeerFailed>(0)) {
      SF_CHECK_MSG(failed.peer == rogue_rank(), failed.error.message);
    }
    SF_CHECK(pair_.events_of<PeerFailed>(1).empty());
  }
  bool is_delivered() {
    for (size_t i = 0; i < sinks_.size(); ++i) {
      if (sinks_[i]->placed() != contents_[i].size()) return false;
    }
    return pair_.events_of<ReceiveCompleted>(1).size() == sinks_.size();
  }

  base::ByteReader input_;
  EndpointPair pair_;
  RoguePeer rogue_{pair_, 0};
  std::deque<Tampering> pending_;                         // one per datagram that comes next
  std::deque<ByteVector> contents_;                       // of the honest messages
  std::vector<std::unique_ptr<BufferSink>> sinks_;        // where they go
  std::vector<std::unique_ptr<BufferSink>> rogue_sinks_;  // of receives that the rogue may meet
  std::set<uint64_t> attached_;                           // ids of the rogue's messages
};

}  // namespace
}  // namespace securefabric::transport

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  securefabric::transport::Attack({data, size}).run();
  return 0;
}
