// Runs the schedules of all ranks of a group in memory, in a random legal order.
//
// Naive on purpose. Each turn picks one of: start any step whose dependencies are complete, deliver
// any outstanding piece of any message whose two ends have started, acknowledge any delivered
// message. A send that is not copied is read when a piece is delivered, not when it starts, so that
// overwriting it too early shows. Bytes that nobody has written are marked, and reading one is an
// error.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/random.h"
#include "collective/reduce_kernels.h"
#include "collective/schedule.h"

namespace securefabric::collective::testing {

// One rank's memory and what it does to it.
struct Member {
  Schedule schedule;                             // what this rank does
  std::vector<std::vector<uint8_t>> buffers;     // the caller's; scratch is appended by the run
  std::vector<std::vector<uint8_t>> is_defined;  // per byte of `buffers`: 1 if it may be read
  double factor = 1.0;                           // of PREMUL_SUM
};

class ScheduleInterpreter {
 public:
  ScheduleInterpreter(std::vector<Member>& members, DataType type, ReduceOp op,
                      uint64_t copied_send_bytes, uint64_t seed)
      : members_(members),
        element_bytes_(data_type_bytes(type)),
        reduce_(find_reduce_kernel(type, op)),
        prepare_(find_prepare_kernel(type)),
        finish_(find_finish_kernel(type)),
        copied_send_bytes_(copied_send_bytes),
        random_(seed) {
    progress_.resize(members.size());
    for (size_t rank = 0; rank < members.size(); ++rank) set_up(rank);
  }

  // An empty string, or what went wrong.
  std::string run() {
    while (error_.empty()) {
      const size_t choices = ready_.size() + pieces_.size() + unacknowledged_.size();
      if (choices == 0) break;
      size_t choice = random_.below(choices);
      if (choice < ready_.size()) {
        start(take(ready_, choice));
      } else if (choice -= ready_.size(); choice < pieces_.size()) {
        deliver(take(pieces_, choice));
      } else {
        complete(take(unacknowledged_, choice - pieces_.size()));
      }
    }
    if (error_.empty() && incomplete_ > 0) error_ = std::to_string(incomplete_) + " steps hang";
    return error_;
  }

 private:
  struct StepId {
    size_t rank = 0;   // whose
    size_t index = 0;  // in its schedule
  };
  using MessageKey = std::tuple<size_t, size_t, uint32_t>;  // sender, receiver, slot
  struct Message {
    StepId send;                    // valid once has_send
    StepId receive;                 // valid once has_receive
    bool has_send = false;          // the send has started
    bool has_receive = false;       // the receive has started
    bool is_copied = false;         // `copy` holds what is sent
    std::vector<uint8_t> copy;      // taken when a short send starts
    size_t pieces_outstanding = 0;  // not delivered yet
  };
  struct Piece {
    MessageKey key;       // of which message
    uint64_t offset = 0;  // in the message
    uint64_t length = 0;  // bytes
  };
  struct Progress {
    std::vector<uint32_t> waits;                    // per step: dependencies not complete
    std::vector<std::vector<uint32_t>> dependents;  // per step: who waits for it
  };

  template <typename T>
  static T take(std::vector<T>& from, size_t index) {
    std::swap(from[index], from.back());
    T taken = std::move(from.back());
    from.pop_back();
    return taken;
  }

  void set_up(size_t rank) {
    Member& member = members_[rank];
    SF_CHECK(member.schedule.scratch_buffer == member.buffers.size());
    member.buffers.emplace_back(member.schedule.scratch_bytes, uint8_t{0xEE});
    member.is_defined.emplace_back(member.schedule.scratch_bytes, uint8_t{0});
    const auto& steps = member.schedule.steps;
    progress_[rank].dependents.resize(steps.size());
    for (size_t i = 0; i < steps.size(); ++i) {
      for (const uint32_t earlier : member.schedule.dependencies_of(steps[i])) {
        progress_[rank].dependents[earlier].push_back(static_cast<uint32_t>(i));
      }
      progress_[rank].waits.push_back(steps[i].dependency_count);
      if (steps[i].dependency_count == 0) ready_.push_back({rank, i});
    }
    incomplete_ += steps.size();
  }

  const Step& step_of(StepId id) const { return members_[id.rank].schedule.steps[id.index]; }

  void fail(StepId id, const std::string& what) {
    if (!error_.empty()) return;
    error_ = "rank " + std::to_string(id.rank) + " step " + std::to_string(id.index) + ": " + what;
  }

  uint8_t* at(StepId id, const Region& region) {
    auto& buffers = members_[id.rank].buffers;
    SF_CHECK(region.buffer < buffers.size());
    SF_CHECK(region.offset + region.length <= buffers[region.buffer].size());
    SF_CHECK(region.offset % element_bytes_ == 0 && region.length % element_bytes_ == 0);
    return buffers[region.buffer].data() + region.offset;
  }
  const uint8_t* read(StepId id, const Region& region) {
    const uint8_t* bytes = at(id, region);
    const uint8_t* defined = members_[id.rank].is_defined[region.buffer].data() + region.offset;
    if (region.length > 0 && std::memchr(defined, 0, region.length) != nullptr) {
      fail(id, "reads what nobody wrote");
    }
    return bytes;
  }
  uint8_t* write(StepId id, const Region& region) {
    uint8_t* bytes = at(id, region);
    uint8_t* defined = members_[id.rank].is_defined[region.buffer].data() + region.offset;
    if (region.length > 0) std::memset(defined, 1, region.length);
    return bytes;
  }

  void start(StepId id) {
    const Step& step = step_of(id);
    const uint64_t length = step.target.length;
    switch (step.kind) {
      case StepKind::kSend: start_send(id, step); return;
      case StepKind::kReceiveCopy:
      case StepKind::kReceiveReduce: start_receive(id, step); return;
      case StepKind::kCopy: {
        const uint8_t* from = read(id, step.operand);
        uint8_t* to = write(id, step.target);
        if (length > 0) std::memmove(to, from, length);
        break;
      }
      case StepKind::kPrepare: {
        const uint8_t* from = read(id, step.operand);
        prepare_(write(id, step.target), from, length, members_[id.rank].factor);
        break;
      }
      case StepKind::kFinish: {
        const uint8_t* from = read(id, step.target);
        finish_(write(id, step.target), from, length, static_cast<double>(members_.size()));
        break;
      }
    }
    complete(id);
  }

  void start_send(StepId id, const Step& step) {
    const MessageKey key{id.rank, step.peer, step.slot};
    Message& message = messages_[key];
    message.send = id;
    message.has_send = true;
    message.is_copied = step.target.length <= copied_send_bytes_;
    if (message.is_copied) {
      const uint8_t* bytes = read(id, step.target);
      message.copy.assign(bytes, bytes + step.target.length);
      complete(id);
    }
    if (message.has_receive) cut_into_pieces(key, message);
  }

  void start_receive(StepId id, const Step& step) {
    const MessageKey key{step.peer, id.rank, step.slot};
    Message& message = messages_[key];
    message.receive = id;
    message.has_receive = true;
    if (message.has_send) cut_into_pieces(key, message);
  }

  // An empty message is one empty piece.
  void cut_into_pieces(const MessageKey& key, Message& message) {
    const uint64_t length = step_of(message.receive).target.length;
    SF_CHECK(length == step_of(message.send).target.length);
    uint64_t offset = 0;
    do {
      const uint64_t rest = (length - offset) / element_bytes_;
      const uint64_t elements = rest == 0             ? 0
                                : random_.chance(0.5) ? rest
                                                      : 1 + random_.below(rest);
      pieces_.push_back({key, offset, elements * element_bytes_});
      ++message.pieces_outstanding;
      offset += elements * element_bytes_;
    } while (offset < length);
  }

  static Region piece_of(const Region& region, const Piece& piece) {
    return {region.buffer, region.offset + piece.offset, piece.length};
  }

  void deliver(const Piece& piece) {
    Message& message = messages_.at(piece.key);
    const Step& send = step_of(message.send);
    const Step& receive = step_of(message.receive);
    const uint8_t* bytes = message.is_copied ? message.copy.data() + piece.offset
                                             : read(message.send, piece_of(send.target, piece));
    if (receive.kind == StepKind::kReceiveCopy) {
      uint8_t* target = write(message.receive, piece_of(receive.target, piece));
      if (piece.length > 0) std::memcpy(target, bytes, piece.length);
    } else {
      const uint8_t* operand = read(message.receive, piece_of(receive.operand, piece));
      uint8_t* target = write(message.receive, piece_of(receive.target, piece));
      const bool swap = receive.received_is_left;
      reduce_(target, swap ? bytes : operand, swap ? operand : bytes, piece.length);
    }
    if (--message.pieces_outstanding > 0) return;
    complete(message.receive);
    if (!message.is_copied) unacknowledged_.push_back(message.send);
  }

  void complete(StepId id) {
    --incomplete_;
    for (const uint32_t dependent : progress_[id.rank].dependents[id.index]) {
      if (--progress_[id.rank].waits[dependent] == 0) ready_.push_back({id.rank, dependent});
    }
  }

  std::vector<Member>& members_;            // one per rank
  size_t element_bytes_;                    // every region is cut at multiples of it
  ReduceFn reduce_;                         // nullptr for movement
  ScaleFn prepare_;                         // nullptr if the type has none
  ScaleFn finish_;                          // likewise
  uint64_t copied_send_bytes_;              // longest send that is complete at once
  base::Random random_;                     // picks what happens next
  std::vector<Progress> progress_;          // per rank
  std::map<MessageKey, Message> messages_;  // begun by one of their ends
  std::vector<StepId> ready_;               // may be started
  std::vector<Piece> pieces_;               // may be delivered
  std::vector<StepId> unacknowledged_;      // sends that are delivered and not complete
  size_t incomplete_ = 0;                   // steps, on all ranks
  std::string error_;                       // the first one
};

}  // namespace securefabric::collective::testing
