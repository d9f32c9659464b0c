// The sans-IO engine: a transport endpoint and the operations that run on it.
//
//   start(operation) ─► steps that wait for nothing ─► post_send / post_receive ─► endpoint
//   handle_datagram  ─► endpoint ─► events ─► a step is complete ─► its dependents start
//                                          └► the last step: the operation is completed
//   a failure        ─► everything of the group fails, the members are told (ABORT), and so are
//                       the other engines of this rank (poll_broken)
//
// The same object is driven by sockets and threads (net/driver.h) and by the simulator
// (sim/cluster.h). Not thread-safe: whoever drives it holds the driver's lock.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/time.h"
#include "collective/matching.h"
#include "collective/operation.h"
#include "transport/endpoint.h"

namespace securefabric::collective {

class Engine final : private transport::ReceiveMatcher {
 public:
  explicit Engine(transport::EndpointConfig config);

  // --- Input ---
  // An error when this engine has, or had, another group with this id.
  base::Status add_group(const std::shared_ptr<Group>& group);
  // Fails what runs in the group and forgets it. Members are told when `reason` is given.
  void remove_group(const Group& group, base::Instant now,
                    const std::optional<base::Error>& reason);
  // Takes an operation. The next sequence number of its group is its own: ranks must start the
  // same operations of a group in the same order. It may be complete when this returns.
  void start(const std::shared_ptr<Operation>& operation, base::Instant now);
  // Lets an operation go on that was held back (Operation::is_held), started or not.
  void release(const std::shared_ptr<Operation>& operation, base::Instant now);
  // Fails every operation of the group and every later one, and tells the members.
  void abort_group(Group& group, const base::Error& reason, base::Instant now);

  // What another engine of this rank has reported (poll_broken) happens here as well.
  void follow(const GroupBroken& broken, base::Instant now);

  // The same for every group, without telling anybody: this process cannot go on.
  // Members are told by this rank's other engines, if `is_told_by_others`.
  void abort_all(const base::Error& reason, bool is_told_by_others, base::Instant now);

  void handle_datagram(base::Instant now, uint8_t socket, bool is_marked_ce, base::Bytes datagram,
                       base::Duration waited = base::Duration());
  void handle_timeout(base::Instant now);
  // Answers to poll_wanted; see Endpoint.
  void install_peer(const transport::PeerDescription& peer, base::Instant now);
  bool learn_peer(const transport::PeerDescription& peer, base::Instant now);
  void link_peer(base::Rank peer, base::Instant now);
  void fail_peer(base::Rank peer, base::Error error, base::Instant now);

  // --- Output ---
  bool poll_transmit(base::Instant now, transport::Transmit& out) {
    return endpoint_.poll_transmit(now, out);
  }
  base::Instant poll_timeout() const;
  // A peer whose roster entry is needed, or may be worth a look.
  std::optional<transport::PeerWanted> poll_wanted();
  // A group that broke in this engine first; to be taken before the operations that it ended.
  std::optional<GroupBroken> poll_broken();
  // An operation that is done; its on_done has not been called.
  std::shared_ptr<Operation> poll_completed();

  bool is_idle() const { return active_.empty(); }
  transport::Endpoint& endpoint() { return endpoint_; }
  const transport::Endpoint& endpoint() const { return endpoint_; }

 private:
  struct StepRef {
    Operation* operation = nullptr;  // active
    uint32_t step = 0;               // index into its schedule
  };
  // What is remembered of a group's past and present, to answer what this rank was doing.
  struct GroupState {
    std::shared_ptr<Group> group;
    std::map<base::Rank, uint32_t> members;      // group rank of each global rank
    uint64_t next_sequence = 0;                  // of the next collective
    std::map<uint64_t, Operation*> collectives;  // active ones, by sequence
    std::map<uint64_t, wire::Signature> recent;  // signatures of the newest collectives
    std::map<std::pair<uint32_t, uint32_t>, uint64_t> sends;  // next of (group rank, tag)
  };

  transport::Match match(base::Rank peer, uint64_t message_id, const wire::MessageKey& key,
                         uint64_t length, const wire::Signature* signature) override;

  // engine_steps.cc: running the steps of operations
  void run_ready(Operation& operation, std::vector<uint32_t> ready);
  bool run_step(Operation& operation, uint32_t index);
  bool post_send(Operation& operation, uint32_t index);
  void post_receive(Operation& operation, uint32_t index);
  void attach(base::Rank peer, uint64_t message_id, const transport::PostedReceive& receive);
  void match_point_to_point(uint64_t group, uint32_t tag);
  uint32_t rank_in(uint64_t group, base::Rank member) const {
    return groups_.at(group).members.at(member);
  }
  void complete_step(StepRef ref);
  void release_group(const Group& group, const std::vector<std::shared_ptr<Operation>>& operations);
  void pull(const Operation& operation, uint32_t index);
  void pull_what_waits(const Operation& operation);
  wire::MessageKey key_of(const Operation& operation, const Step& step) const;

  // engine.cc: life of operations, events
  void take_sequence(Operation& operation, GroupState& state);
  void begin_steps(Operation& operation);
  std::optional<base::Error> require_peers(const Operation& operation);
  void pump(base::Instant now);
  void on_event(const transport::Event& event);
  void finish(Operation& operation, std::optional<base::Error> error);
  Operation* find_active(uint64_t group, uint64_t sequence);
  void set_timer(Operation& operation);
  std::vector<std::shared_ptr<Operation>> operations_of(const Group& group) const;

  // engine_failures.cc: disagreement, lost peers, deadlines, aborts
  void on_mismatch(const transport::MessageMismatch& mismatch);
  void check_signature(uint64_t group, uint64_t sequence, base::Rank peer,
                       const wire::Signature& theirs);
  base::Error disagreement(const Group& group, uint64_t sequence, const wire::Signature& ours,
                           base::Rank peer, const wire::Signature& theirs) const;
  base::Error other_group(const Group& group, base::Rank peer) const;
  void on_abort(const transport::GroupAborted& aborted);
  void on_peer_lost(base::Rank peer, const base::Error& error);
  bool is_deserted_by(const Operation& operation, base::Rank peer) const;
  bool is_alone(const Group& group) const;
  bool holds_message_for(const Operation& operation, uint32_t index) const;
  void fail_if_deserted(Operation& operation);
  void fail_deserted(Operation& operation, base::Rank peer, const base::Error& error);
  std::string why_left(base::Rank peer, const base::Error& departure) const;
  void inquire(Operation& operation);
  std::vector<uint32_t> silent_peers(const Operation& operation) const;
  void on_status(base::Rank peer, const wire::StatusFrame& status);
  void note_progress(Operation& operation, uint32_t member, const wire::StatusFrame& status);
  void answer_status(base::Rank peer, const wire::StatusFrame& question, const GroupState& state);
  const Operation& asked_about(const Operation& operation) const;
  base::Error timeout_error(const Operation& operation) const;
  void fail(Operation& operation, const base::Error& error);
  void break_group(Group& group, const base::Error& error, const std::optional<base::Error>& told);
  void break_here(Group& group, const base::Error& error, const std::optional<base::Error>& told);
  std::string name_of(const Operation& operation) const;

  base::Instant now_;  // of the current call
  transport::Endpoint endpoint_;
  CollectiveMatching collectives_;
  PointToPointMatching point_to_point_;
  std::map<uint64_t, GroupState> groups_;                  // by wire id
  std::set<uint64_t> closed_groups_;                       // wire ids that were removed
  std::map<uint64_t, std::shared_ptr<Operation>> active_;  // started and not done, by id
  std::set<std::pair<base::Instant, uint64_t>> timers_;    // of active operations, with their ids
  uint64_t next_operation_id_ = 0;
  std::unordered_map<transport::Token, StepRef> tokens_;  // posted sends and receives
  transport::Token next_token_ = 1;
  std::deque<transport::PeerWanted> wanted_;
  std::deque<GroupBroken> broken_;
  bool has_lost_peers_ = false;  // a peer was lost or has left: operations look before they start
  std::deque<std::shared_ptr<Operation>> completed_;
  std::set<std::pair<uint64_t, uint32_t>> unmatched_tags_;  // (group, tag) to look at again
  // Signatures of messages that met no receive, to be compared once the transport has returned.
  struct Claim {
    uint64_t group = 0;
    uint64_t sequence = 0;
    base::Rank peer;
    wire::Signature signature;
  };
  std::deque<Claim> claims_;
};

}  // namespace securefabric::collective
