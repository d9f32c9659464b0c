// What goes wrong: ranks that disagree, peers that are lost or have left, deadlines, aborts.
//
// Every failure of an operation ends in fail(), which breaks its group: after it, ranks no longer
// agree which operation is which. The members that this rank has links with are told; who is told
// passes it on once, for no rank has links with all.
#include <algorithm>
#include <cstdio>
#include <set>

#include "collective/engine.h"

namespace securefabric::collective {

using base::Duration;
using base::Error;
using base::ErrorCode;
using base::Rank;

namespace {

constexpr Duration kInquiryIntervalMax = Duration::seconds(30);

std::string in_seconds(Duration duration) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f s", duration.seconds());
  return text;
}

// To every other member that there is a link with.
void tell_members(transport::Endpoint& endpoint, const Group& group, const Error& reason) {
  wire::AbortFrame abort;
  abort.group = group.wire_id;
  abort.group_tail = group.tail;
  abort.code = static_cast<uint8_t>(reason.code);
  abort.reason = reason.message.substr(0, wire::AbortFrame::kReasonBytesMax);
  for (const Rank rank : group.ranks) {
    if (rank != endpoint.config().rank) endpoint.post_abort(rank, abort);
  }
}

}  // namespace

Error Engine::disagreement(const Group& group, uint64_t sequence, const wire::Signature& ours,
                           Rank peer, const wire::Signature& theirs) const {
  return Error{ErrorCode::kMismatch,
               "ranks disagree about operation " + std::to_string(sequence) +
                   " of process group '" + group.name + "': rank " +
                   std::to_string(endpoint_.config().rank.value) + " runs " +
                   describe_signature(ours) + ", rank " + std::to_string(peer.value) + " runs " +
                   describe_signature(theirs) +
                   ". Every rank must call the same operations in the same order with equal "
                   "shapes and types"};
}

// A member's message has our group's id and is of another group: somebody has made two identities
// meet in 8 bytes, which no program does by chance.
Error Engine::other_group(const Group& group, Rank peer) const {
  return Error{ErrorCode::kMismatch,
               "ranks disagree about which group this is: what rank " + std::to_string(peer.value) +
                   " sends has the id of process group '" + group.name + "' of rank " +
                   std::to_string(endpoint_.config().rank.value) +
                   " and is of another group. Somebody has changed what ranks read in the store; "
                   "start the job anew with a store that nobody else can write to"};
}

void Engine::on_mismatch(const transport::MessageMismatch& mismatch) {
  const auto at = tokens_.find(mismatch.token);
  if (at == tokens_.end()) return;
  Operation& operation = *at->second.operation;
  const uint64_t expected = operation.request().schedule.steps[at->second.step].target.length;
  if (mismatch.signature->group_tail != operation.group().tail) {
    return fail(operation, other_group(operation.group(), mismatch.peer));
  }
  const bool same_signature = mismatch.signature == operation.signature();
  if (!operation.is_point_to_point() && !same_signature) {
    fail(operation, disagreement(operation.group(), operation.sequence, operation.signature(),
                                 mismatch.peer, *mismatch.signature));
    return;
  }
  fail(operation,
       Error{ErrorCode::kMismatch, "rank " + std::to_string(mismatch.peer.value) + " sends " +
                                       std::to_string(mismatch.length) + " bytes where rank " +
                                       std::to_string(endpoint_.config().rank.value) + " expects " +
                                       std::to_string(expected) + " in " + name_of(operation) +
                                       ". Both sides must use equal shapes and types"});
}

void Engine::check_signature(uint64_t group, uint64_t sequence, Rank peer,
                             const wire::Signature& theirs) {
  const auto at = groups_.find(group);
  if (at == groups_.end() || at->second.group->broken) return;
  if (!at->second.members.contains(peer)) return;  // a stranger cannot disagree
  if (theirs.group_tail != at->second.group->tail) {
    const Error error = other_group(*at->second.group, peer);
    return break_group(*at->second.group, error, error);
  }
  const auto ours = at->second.recent.find(sequence);
  if (ours == at->second.recent.end() || ours->second == theirs) return;
  const Error error = disagreement(*at->second.group, sequence, ours->second, peer, theirs);
  if (Operation* operation = find_active(group, sequence)) {
    fail(*operation, error);
  } else {
    break_group(*at->second.group, error, error);
  }
}

void Engine::on_abort(const transport::GroupAborted& aborted) {
  const auto at = groups_.find(aborted.group);
  if (at == groups_.end() || !at->second.members.contains(aborted.peer)) return;
  Group& group = *at->second.group;
  if (group.broken) return;
  if (aborted.group_tail != group.tail) {
    const Error error = other_group(group, aborted.peer);
    return break_group(group, error, error);
  }
  const Error error{aborted.error.code, "rank " + std::to_string(aborted.peer.value) +
                                            " gave up process group '" + group.name +
                                            "': " + aborted.error.message};
  break_group(group, error, aborted.error);
}

// True when the operation cannot complete without this peer, which is lost or has left. A lost peer
// is an error on everything that involves it; of one that has left, what it sent still counts.
bool Engine::is_deserted_by(const Operation& operation, Rank peer) const {
  const bool has_left = endpoint_.has_left(peer);
  const auto& steps = operation.request().schedule.steps;
  for (uint32_t i = 0; i < steps.size(); ++i) {
    if (operation.states[i].is_done || !is_network(steps[i].kind)) continue;
    const uint32_t at = steps[i].peer == kAnySource ? operation.source_rank : steps[i].peer;
    if (at == kAnySource) {
      // Any rank of the group may be the one; those that left will not.
      if (groups_.at(operation.group().wire_id).members.contains(peer) &&
          (!has_left || is_alone(operation.group()))) {
        return true;
      }
      continue;
    }
    if (operation.group().ranks[at] != peer) continue;
    if (!has_left || !holds_message_for(operation, i)) return true;
  }
  return false;
}

// True when nobody else of the group can be reached any more.
bool Engine::is_alone(const Group& group) const {
  return std::all_of(group.ranks.begin(), group.ranks.end(), [this](Rank rank) {
    return rank == endpoint_.config().rank || endpoint_.peer_error(rank).has_value();
  });
}

// True when the message of a receive that will be posted later is here already.
bool Engine::holds_message_for(const Operation& operation, uint32_t index) const {
  const Step& step = operation.request().schedule.steps[index];
  if (!is_receive(step.kind) || operation.states[index].is_started) return false;
  const Rank peer = operation.group().ranks[step.peer];
  const HeldMessage* held =
      collectives_.held_at({operation.group().wire_id, operation.sequence, peer, step.slot});
  return held != nullptr && endpoint_.has_message(peer, held->message_id);
}

void Engine::on_peer_lost(Rank peer, const Error& error) {
  has_lost_peers_ = true;
  std::vector<std::shared_ptr<Operation>> affected;
  for (const auto& [id, operation] : active_) {
    if (is_deserted_by(*operation, peer)) affected.push_back(operation);
  }
  for (const auto& operation : affected) {
    if (!operation->is_done) fail_deserted(*operation, peer, error);
  }
}

// The same for an operation that starts when peers are gone already.
void Engine::fail_if_deserted(Operation& operation) {
  if (!has_lost_peers_) return;
  for (const Rank peer : operation.group().ranks) {
    if (operation.is_done) return;
    const auto error = endpoint_.peer_error(peer);
    if (error && is_deserted_by(operation, peer)) fail_deserted(operation, peer, *error);
  }
}

void Engine::fail_deserted(Operation& operation, Rank peer, const Error& error) {
  fail(operation,
       Error{error.code, error.message + "; " + name_of(operation) + " was waiting for it for " +
                             in_seconds(now_ - operation.started_at) + why_left(peer, error)});
}

// Of a rank that has left in good order, as one does whose program raised: what is known here is
// the end of another group of both, whose members were told. The rest is in that rank's log.
std::string Engine::why_left(Rank peer, const Error& departure) const {
  if (!endpoint_.has_left(peer)) return "";
  for (const auto& [id, state] : groups_) {
    const std::optional<Error>& broken = state.group->broken;
    if (!broken || !state.members.contains(peer)) continue;
    if (broken->message.starts_with(departure.message)) continue;  // a consequence, no cause
    return "; before, process group '" + state.group->name + "' had ended: " + broken->message;
  }
  return "; its own log says why";
}

std::vector<uint32_t> Engine::silent_peers(const Operation& operation) const {
  std::set<uint32_t> silent;
  for (size_t i = 0; i < operation.states.size(); ++i) {
    const Operation::StepState& state = operation.states[i];
    const uint32_t peer = operation.request().schedule.steps[i].peer;
    if (state.is_started && !state.is_done && peer != kAnySource) silent.insert(peer);
  }
  return {silent.begin(), silent.end()};
}

void Engine::pull_what_waits(const Operation& operation) {
  const auto& steps = operation.request().schedule.steps;
  for (uint32_t i = 0; i < operation.states.size(); ++i) {
    const Operation::StepState& state = operation.states[i];
    if (!state.is_started || state.is_done || !is_receive(steps[i].kind)) continue;
    if (steps[i].peer == kAnySource) continue;
    if (endpoint_.is_short_of_credit(operation.group().ranks[steps[i].peer])) pull(operation, i);
  }
}

void Engine::inquire(Operation& operation) {
  operation.inquiry_interval = base::shorter(operation.inquiry_interval * 2, kInquiryIntervalMax);
  operation.inquiry_at = now_ + operation.inquiry_interval;
  pull_what_waits(operation);
  if (operation.is_point_to_point()) return;
  if (&asked_about(operation) != &operation) return;
  for (const uint32_t peer : silent_peers(operation)) {
    wire::StatusFrame status;
    status.group = operation.group().wire_id;
    status.operation = operation.sequence;
    status.signature = operation.signature();
    status.wants_answer = true;
    endpoint_.post_status(operation.group().ranks[peer], status);
  }
}

void Engine::on_status(Rank peer, const wire::StatusFrame& status) {
  const auto at = groups_.find(status.group);
  if (at == groups_.end()) {
    if (status.wants_answer && !closed_groups_.contains(status.group)) {
      wire::StatusFrame answer;
      answer.group = status.group;
      answer.operation = status.operation;
      answer.is_unknown_group = true;
      endpoint_.post_status(peer, answer);
    }
    return;
  }
  GroupState& state = at->second;
  const auto member = state.members.find(peer);
  if (member == state.members.end()) return;
  if (Operation* operation = find_active(status.group, status.operation)) {
    note_progress(*operation, member->second, status);
  }
  if (status.is_unknown_group) return;
  if (status.wants_answer) answer_status(peer, status, state);
  const bool is_same_group = status.signature.group_tail == state.group->tail;
  if (status.signature.kind == 0 && is_same_group) return;  // not started: nothing to compare
  check_signature(status.group, status.operation, peer, status.signature);
}

// What a member has said of an operation that runs here.
void Engine::note_progress(Operation& operation, uint32_t member, const wire::StatusFrame& status) {
  const auto note = [member](std::set<uint32_t>& members, bool is_so) {
    if (is_so) {
      members.insert(member);
    } else {
      members.erase(member);
    }
  };
  note(operation.unknown_to, status.is_unknown_group);
  note(operation.not_started, status.signature.kind == 0);
}

void Engine::answer_status(Rank peer, const wire::StatusFrame& question, const GroupState& state) {
  wire::StatusFrame answer;
  answer.group = question.group;
  answer.operation = question.operation;
  const auto ours = state.recent.find(question.operation);
  if (ours != state.recent.end()) {
    answer.signature = ours->second;
  } else if (question.operation >= state.next_sequence) {
    answer.signature.group_tail = state.group->tail;
  } else {
    return;  // too long ago to remember: silence is better than a wrong answer
  }
  endpoint_.post_status(peer, answer);
}

// Ranks start the collectives of a group in one order: who has not started the oldest has started
// none. So peers are asked about that one alone.
const Operation& Engine::asked_about(const Operation& operation) const {
  if (operation.is_point_to_point()) return operation;
  return *groups_.at(operation.group().wire_id).collectives.begin()->second;
}

Error Engine::timeout_error(const Operation& operation) const {
  std::string text = name_of(operation) + " Timed out after " +
                     in_seconds(now_ - operation.started_at) + " on rank " +
                     std::to_string(endpoint_.config().rank.value);
  if (operation.is_held) text += ", waiting for operations that this rank had begun before";
  const char* separator = ", waiting for ";
  const Operation& asked = asked_about(operation);
  for (const uint32_t peer : silent_peers(operation)) {
    const Rank rank = operation.group().ranks[peer];
    text += separator + endpoint_.describe_peer(rank);
    separator = ", ";
    if (asked.unknown_to.contains(peer)) {
      text +=
          " which knows no such group: it has not made it yet, or ranks disagree about its members "
          "or about the order in which they make groups";
    } else if (asked.not_started.contains(peer)) {
      text += " which has not started this operation";
    } else if (const auto heard = endpoint_.last_heard_at(rank)) {
      text += " last heard " + in_seconds(now_ - *heard) + " ago";
    } else {
      text += " which was never reached";
    }
  }
  return Error{ErrorCode::kTimeout, text};
}

void Engine::fail(Operation& operation, const Error& error) {
  if (operation.is_done) return;
  SF_CHECK(!operation.group().broken);  // which ended all operations, and starts no more
  const std::shared_ptr<Group> group = operation.shared_group();
  break_group(*group, error, error);
}

void Engine::break_group(Group& group, const Error& error, const std::optional<Error>& told) {
  break_here(group, error, told);
  broken_.push_back({group.wire_id, error, told});
}

void Engine::break_here(Group& group, const Error& error, const std::optional<Error>& told) {
  group.broken = error;
  const auto affected = operations_of(group);
  release_group(group, affected);
  for (const auto& operation : affected) finish(*operation, error);
  if (told) tell_members(endpoint_, group, *told);
}

}  // namespace securefabric::collective
