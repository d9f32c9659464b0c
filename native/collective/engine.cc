#include "collective/engine.h"

namespace securefabric::collective {

using base::Duration;
using base::Error;
using base::ErrorCode;
using base::Instant;
using base::Rank;

namespace {

// An operation without news for this long asks its peers what they are doing.
constexpr Duration kInquiryAfter = Duration::seconds(1);
// Collectives whose signatures are remembered per group, to compare with ranks that are behind.
constexpr size_t kRecentSignaturesMax = 256;

}  // namespace

Engine::Engine(transport::EndpointConfig config) : endpoint_(std::move(config), *this) {}

base::Status Engine::add_group(const std::shared_ptr<Group>& group) {
  if (groups_.contains(group->wire_id) || closed_groups_.contains(group->wire_id)) {
    return Error{ErrorCode::kConfig,
                 "process group '" + group->name +
                     "' cannot be made: this process has, or had, another group with its id. "
                     "Whoever makes groups must give each an identity of its own"};
  }
  GroupState& state = groups_[group->wire_id];
  state.group = group;
  for (uint32_t i = 0; i < group->size(); ++i) state.members[group->ranks[i]] = i;
  // Messages may have come before the group was known, and from whomever.
  point_to_point_.drop_strangers(group->wire_id, group->ranks);
  return base::ok_status();
}

void Engine::remove_group(const Group& group, Instant now, const std::optional<Error>& reason) {
  now_ = now;
  const auto at = groups_.find(group.wire_id);
  if (at == groups_.end()) return;
  const Error error = reason.value_or(
      Error{ErrorCode::kAborted, "process group '" + group.name + "' was shut down"});
  break_group(*at->second.group, error, reason);
  collectives_.drop_group(group.wire_id);
  point_to_point_.drop_group(group.wire_id);
  closed_groups_.insert(group.wire_id);
  groups_.erase(at);
  endpoint_.drop_group(group.wire_id);
  pump(now);
}

void Engine::abort_group(Group& group, const Error& reason, Instant now) {
  now_ = now;
  if (!group.broken) break_group(group, reason, reason);
  pump(now);
}

void Engine::follow(const GroupBroken& broken, Instant now) {
  now_ = now;
  const auto at = groups_.find(broken.wire_id);
  if (at == groups_.end() || at->second.group->broken) return;
  break_here(*at->second.group, broken.error, broken.told);
  pump(now);
}

void Engine::abort_all(const Error& reason, bool is_told_by_others, Instant now) {
  now_ = now;
  for (auto& [id, state] : groups_) {
    if (state.group->broken) continue;
    break_here(*state.group, reason, std::nullopt);
    broken_.push_back({id, reason, is_told_by_others ? std::optional(reason) : std::nullopt});
  }
  pump(now);
}

void Engine::start(const std::shared_ptr<Operation>& operation, Instant now) {
  now_ = now;
  Operation& op = *operation;
  op.id = next_operation_id_++;
  op.started_at = now;
  op.inquiry_at = now + kInquiryAfter;
  op.inquiry_interval = kInquiryAfter;
  active_[op.id] = operation;
  set_timer(op);
  const auto at = groups_.find(op.group().wire_id);
  if (at == groups_.end()) {
    return finish(
        op, Error{ErrorCode::kAborted, "process group '" + op.group().name + "' was shut down"});
  }
  if (op.group().broken) return finish(op, op.group().broken);
  take_sequence(op, at->second);
  if (const auto error = require_peers(op)) {
    fail(op, *error);
    return pump(now);
  }
  if (!op.is_point_to_point()) {
    for (const auto& [key, held] : collectives_.held_for(op.group().wire_id, op.sequence)) {
      if (held.signature) claims_.push_back({key.group, key.operation, key.peer, *held.signature});
    }
  }
  if (!op.is_held) begin_steps(op);
  pump(now);
  fail_if_deserted(op);
  pump(now);
}

void Engine::release(const std::shared_ptr<Operation>& operation, Instant now) {
  now_ = now;
  operation->is_held = false;
  const auto at = active_.find(operation->id);
  if (at == active_.end() || at->second != operation) return;  // not started yet, or it has failed
  begin_steps(*operation);
  pump(now);
}

void Engine::begin_steps(Operation& operation) {
  std::vector<uint32_t> ready;
  for (uint32_t i = 0; i < operation.states.size(); ++i) {
    if (operation.states[i].waits_for == 0) ready.push_back(i);
  }
  run_ready(operation, std::move(ready));
}

// Ranks agree on numbers because they start the same operations in the same order.
void Engine::take_sequence(Operation& operation, GroupState& state) {
  const OperationRequest& request = operation.request();
  if (request.kind == OperationKind::kReceive) return;
  if (request.kind == OperationKind::kSend) {
    operation.sequence = state.sends[{request.schedule.steps.front().peer, request.tag}]++;
    return;
  }
  operation.sequence = request.sequence.value_or(state.next_sequence);
  state.next_sequence = operation.sequence + 1;
  state.collectives[operation.sequence] = &operation;
  state.recent[operation.sequence] = operation.signature();
  if (state.recent.size() > kRecentSignaturesMax) state.recent.erase(state.recent.begin());
}

// Starts to reach every peer of the operation. The error of one that cannot be used, if there is
// one; of a rank that has left in good order, what it sent before may be all that is needed.
std::optional<Error> Engine::require_peers(const Operation& operation) {
  std::vector<bool> is_required(operation.group().size());
  for (const Step& step : operation.request().schedule.steps) {
    if (!is_network(step.kind) || step.peer == kAnySource) continue;
    const Rank peer = operation.group().ranks[step.peer];
    if (!is_required[step.peer]) endpoint_.require_peer(peer, now_);
    is_required[step.peer] = true;
    if (!has_lost_peers_ || (endpoint_.has_left(peer) && is_receive(step.kind))) continue;
    if (const auto error = endpoint_.peer_error(peer)) {
      return Error{error->code, error->message + "; " + name_of(operation) + " needs it" +
                                    why_left(peer, *error)};
    }
  }
  return std::nullopt;
}

void Engine::handle_datagram(Instant now, uint8_t socket, bool is_marked_ce, base::Bytes datagram,
                             base::Duration waited) {
  now_ = now;
  endpoint_.handle_datagram(now, socket, is_marked_ce, datagram, waited);
  pump(now);
}

void Engine::handle_timeout(Instant now) {
  now_ = now;
  endpoint_.handle_timeout(now);
  pump(now);
  while (!timers_.empty() && timers_.begin()->first <= now) {
    const std::shared_ptr<Operation> operation = active_.at(timers_.begin()->second);
    if (operation->request().deadline <= now) {
      fail(*operation, timeout_error(*operation));
    } else {
      inquire(*operation);
      set_timer(*operation);
    }
  }
  pump(now);
}

void Engine::set_timer(Operation& operation) {
  timers_.erase({operation.timer_at, operation.id});
  operation.timer_at = base::earlier(operation.request().deadline, operation.inquiry_at);
  if (!operation.timer_at.is_never()) timers_.emplace(operation.timer_at, operation.id);
}

Instant Engine::poll_timeout() const {
  const Instant earliest = endpoint_.poll_timeout();
  return timers_.empty() ? earliest : base::earlier(earliest, timers_.begin()->first);
}

void Engine::install_peer(const transport::PeerDescription& peer, Instant now) {
  now_ = now;
  const base::Status status = endpoint_.install_peer(peer, now);
  // A restarted peer leaves the old connection as it is; what needs the rank fails by name.
  if (!status) on_peer_lost(peer.rank, status.error());
  pump(now);
}

bool Engine::learn_peer(const transport::PeerDescription& peer, Instant now) {
  now_ = now;
  const bool is_known = endpoint_.learn_peer(peer, now);
  pump(now);
  return is_known;
}

void Engine::link_peer(Rank peer, Instant now) {
  now_ = now;
  endpoint_.link_peer(peer, now);
  pump(now);
}

void Engine::fail_peer(Rank peer, Error error, Instant now) {
  now_ = now;
  endpoint_.fail_peer(peer, std::move(error), now);
  pump(now);
}

std::optional<transport::PeerWanted> Engine::poll_wanted() {
  if (wanted_.empty()) return std::nullopt;
  const transport::PeerWanted wanted = wanted_.front();
  wanted_.pop_front();
  return wanted;
}

std::optional<GroupBroken> Engine::poll_broken() {
  if (broken_.empty()) return std::nullopt;
  GroupBroken broken = std::move(broken_.front());
  broken_.pop_front();
  return broken;
}

std::shared_ptr<Operation> Engine::poll_completed() {
  if (completed_.empty()) return nullptr;
  std::shared_ptr<Operation> operation = std::move(completed_.front());
  completed_.pop_front();
  return operation;
}

// Handles all that the transport reports until it has nothing more to say.
void Engine::pump(Instant now) {
  now_ = now;
  while (true) {
    // Claims first: what they find out is older than what completes now.
    if (!claims_.empty()) {
      const Claim claim = claims_.front();
      claims_.pop_front();
      check_signature(claim.group, claim.sequence, claim.peer, claim.signature);
    } else if (const auto event = endpoint_.poll_event()) {
      on_event(*event);
    } else if (!unmatched_tags_.empty()) {
      const auto [group, tag] = *unmatched_tags_.begin();
      unmatched_tags_.erase(unmatched_tags_.begin());
      match_point_to_point(group, tag);
    } else {
      return;
    }
  }
}

void Engine::on_event(const transport::Event& event) {
  const auto complete = [this](transport::Token token) {
    const auto at = tokens_.find(token);
    if (at == tokens_.end()) return;  // withdrawn meanwhile
    const StepRef ref = at->second;
    tokens_.erase(at);
    complete_step(ref);
  };
  if (const auto* received = std::get_if<transport::ReceiveCompleted>(&event)) {
    complete(received->token);
  } else if (const auto* delivered = std::get_if<transport::SendDelivered>(&event)) {
    complete(delivered->token);
  } else if (const auto* wanted = std::get_if<transport::PeerWanted>(&event)) {
    wanted_.push_back(*wanted);
  } else if (const auto* mismatch = std::get_if<transport::MessageMismatch>(&event)) {
    on_mismatch(*mismatch);
  } else if (const auto* failed = std::get_if<transport::PeerFailed>(&event)) {
    on_peer_lost(failed->peer, failed->error);
  } else if (const auto* left = std::get_if<transport::PeerLeft>(&event)) {
    if (const auto error = endpoint_.peer_error(left->peer)) on_peer_lost(left->peer, *error);
  } else if (const auto* status = std::get_if<transport::StatusReceived>(&event)) {
    on_status(status->peer, status->status);
  } else if (const auto* aborted = std::get_if<transport::GroupAborted>(&event)) {
    on_abort(*aborted);
  }
}

std::string Engine::name_of(const Operation& operation) const {
  std::string text = operation.describe();
  if (!operation.is_point_to_point()) text += ", operation " + std::to_string(operation.sequence);
  return text + " of process group '" + operation.group().name + "'";
}

Operation* Engine::find_active(uint64_t group, uint64_t sequence) {
  const auto state = groups_.find(group);
  if (state == groups_.end()) return nullptr;
  const auto at = state->second.collectives.find(sequence);
  return at == state->second.collectives.end() ? nullptr : at->second;
}

std::vector<std::shared_ptr<Operation>> Engine::operations_of(const Group& group) const {
  std::vector<std::shared_ptr<Operation>> operations;
  for (const auto& [id, operation] : active_) {
    if (&operation->group() == &group) operations.push_back(operation);
  }
  return operations;
}

void Engine::finish(Operation& operation, std::optional<Error> error) {
  const auto at = active_.find(operation.id);
  SF_CHECK(at != active_.end());
  timers_.erase({operation.timer_at, operation.id});
  if (const auto state = groups_.find(operation.group().wire_id); state != groups_.end()) {
    const auto mine = state->second.collectives.find(operation.sequence);
    const bool is_indexed = mine != state->second.collectives.end() && mine->second == &operation;
    if (is_indexed) state->second.collectives.erase(mine);
  }
  operation.is_done = true;
  operation.error = std::move(error);
  completed_.push_back(std::move(at->second));
  active_.erase(at);
}

}  // namespace securefabric::collective
