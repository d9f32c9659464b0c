#include "collective/engine.h"

#include <algorithm>
#include <cstdio>

namespace securefabric::collective {

using base::Duration;
using base::Error;
using base::ErrorCode;
using base::Instant;
using base::Rank;

namespace {

// An operation without news for this long asks its peers what they are doing.
constexpr Duration kInquiryAfter = Duration::seconds(1);
constexpr Duration kInquiryIntervalMax = Duration::seconds(30);
// Collectives whose signatures are remembered per group, to compare with ranks that are behind.
constexpr size_t kRecentSignaturesMax = 256;

std::string in_seconds(Duration duration) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f s", duration.seconds());
  return text;
}

std::optional<uint32_t> rank_in(const Group& group, Rank global) {
  const auto at = std::find(group.ranks.begin(), group.ranks.end(), global);
  if (at == group.ranks.end()) return std::nullopt;
  return static_cast<uint32_t>(at - group.ranks.begin());
}

}  // namespace

Engine::Engine(transport::EndpointConfig config) : endpoint_(std::move(config), *this) {}

void Engine::add_group(const std::shared_ptr<Group>& group) {
  SF_CHECK(!groups_.contains(group->wire_id));
  groups_[group->wire_id].group = group;
}

void Engine::remove_group(const Group& group, Instant now, const std::optional<Error>& reason) {
  now_ = now;
  const auto at = groups_.find(group.wire_id);
  if (at == groups_.end()) return;
  const Error error = reason.value_or(
      Error{ErrorCode::kAborted, "process group '" + group.name + "' was shut down"});
  break_group(*at->second.group, error, /*tell_members=*/reason.has_value());
  collectives_.drop_group(group.wire_id);
  point_to_point_.drop_group(group.wire_id);
  closed_groups_.insert(group.wire_id);
  groups_.erase(at);
  endpoint_.drop_group(group.wire_id);
  pump(now);
}

void Engine::abort_group(Group& group, const Error& reason, Instant now) {
  now_ = now;
  if (!group.broken) break_group(group, reason, /*tell_members=*/true);
  pump(now);
}

void Engine::abort_all(const Error& reason, Instant now) {
  now_ = now;
  for (auto& [id, state] : groups_) {
    if (!state.group->broken) break_group(*state.group, reason, /*tell_members=*/false);
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
  const auto at = groups_.find(op.group().wire_id);
  active_[op.id] = operation;
  if (at == groups_.end() || op.group().broken) {
    const Error closed{ErrorCode::kAborted,
                       "process group '" + op.group().name + "' was shut down"};
    finish(op, at == groups_.end() ? closed : *op.group().broken);
    return;
  }
  GroupState& state = at->second;
  const auto& steps = op.request().schedule.steps;
  if (op.request().kind == OperationKind::kSend) {
    op.sequence = state.sends[{steps.front().peer, op.request().tag}]++;
  } else if (!op.is_point_to_point()) {
    op.sequence = state.next_sequence++;
    state.recent[op.sequence] = op.signature();
    if (state.recent.size() > kRecentSignaturesMax) state.recent.erase(state.recent.begin());
  }
  std::set<uint32_t> peers;
  for (const Step& step : steps) {
    const bool is_network = step.kind == StepKind::kSend || step.kind == StepKind::kReceiveCopy ||
                            step.kind == StepKind::kReceiveReduce;
    if (is_network && step.peer != kAnySource) peers.insert(step.peer);
  }
  for (const uint32_t peer : peers) {
    const Rank rank = op.group().ranks[peer];
    endpoint_.require_peer(rank, now);
    if (const auto error = endpoint_.peer_error(rank)) {
      fail(op, Error{error->code, error->message + "; " + name_of(op) + " needs it"});
      return pump(now);
    }
  }
  for (const auto& [key, held] : collectives_.held_for(op.group().wire_id, op.sequence)) {
    if (!op.is_point_to_point() && held.signature) {
      claims_.push_back({key.group, key.operation, key.peer, *held.signature});
    }
  }
  std::vector<uint32_t> ready;
  for (uint32_t i = 0; i < op.states.size(); ++i) {
    if (op.states[i].waits_for == 0) ready.push_back(i);
  }
  run_ready(op, std::move(ready));
  pump(now);
}

void Engine::handle_datagram(Instant now, uint8_t socket, bool is_marked_ce,
                             base::Bytes datagram) {
  now_ = now;
  endpoint_.handle_datagram(now, socket, is_marked_ce, datagram);
  pump(now);
}

void Engine::handle_timeout(Instant now) {
  now_ = now;
  endpoint_.handle_timeout(now);
  pump(now);
  std::vector<std::shared_ptr<Operation>> due;
  for (const auto& [id, operation] : active_) {
    if (operation->request().deadline <= now || operation->inquiry_at <= now) {
      due.push_back(operation);
    }
  }
  for (const auto& operation : due) {
    if (operation->is_done) continue;
    if (operation->request().deadline <= now) {
      fail(*operation, timeout_error(*operation));
    } else {
      inquire(*operation);
    }
  }
  pump(now);
}

Instant Engine::poll_timeout() const {
  Instant earliest = endpoint_.poll_timeout();
  for (const auto& [id, operation] : active_) {
    earliest = base::earlier(earliest, operation->request().deadline);
    earliest = base::earlier(earliest, operation->inquiry_at);
  }
  return earliest;
}

void Engine::install_peer(const transport::PeerDescription& peer, Instant now) {
  now_ = now;
  const base::Status status = endpoint_.install_peer(peer, now);
  // A restarted peer leaves the old connection as it is; what needs the rank fails by name.
  if (!status) on_peer_lost(peer.rank, status.error());
  pump(now);
}

void Engine::fail_peer(Rank peer, Error error, Instant now) {
  now_ = now;
  endpoint_.fail_peer(peer, std::move(error), now);
  pump(now);
}

std::optional<Rank> Engine::poll_wanted() {
  if (wanted_.empty()) return std::nullopt;
  const Rank rank = wanted_.front();
  wanted_.pop_front();
  return rank;
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
    if (const auto event = endpoint_.poll_event()) {
      on_event(*event);
    } else if (!claims_.empty()) {
      const Claim claim = claims_.front();
      claims_.pop_front();
      check_signature(claim.group, claim.sequence, claim.peer, claim.signature);
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
    wanted_.push_back(wanted->peer);
  } else if (const auto* mismatch = std::get_if<transport::MessageMismatch>(&event)) {
    on_mismatch(*mismatch);
  } else if (const auto* failed = std::get_if<transport::PeerFailed>(&event)) {
    on_peer_lost(failed->peer, failed->error);
  } else if (const auto* left = std::get_if<transport::PeerLeft>(&event)) {
    on_peer_left(left->peer);
  } else if (const auto* status = std::get_if<transport::StatusReceived>(&event)) {
    on_status(status->peer, status->status);
  } else if (const auto* aborted = std::get_if<transport::GroupAborted>(&event)) {
    const auto at = groups_.find(aborted->group);
    if (at == groups_.end() || at->second.group->broken) return;
    const Error error{aborted->error.code, "rank " + std::to_string(aborted->peer.value) +
                                               " gave up process group '" +
                                               at->second.group->name +
                                               "': " + aborted->error.message};
    break_group(*at->second.group, error, /*tell_members=*/false);
  }
}

std::string Engine::name_of(const Operation& operation) const {
  std::string text = operation.describe();
  if (!operation.is_point_to_point()) text += ", operation " + std::to_string(operation.sequence);
  return text + " of process group '" + operation.group().name + "'";
}

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

void Engine::on_mismatch(const transport::MessageMismatch& mismatch) {
  const auto at = tokens_.find(mismatch.token);
  if (at == tokens_.end()) return;
  Operation& operation = *at->second.operation;
  const uint64_t expected = operation.request().schedule.steps[at->second.step].target.length;
  const bool same_signature = mismatch.signature == operation.signature();
  if (!operation.is_point_to_point() && !same_signature) {
    fail(operation, disagreement(operation.group(), operation.sequence, operation.signature(),
                                 mismatch.peer, *mismatch.signature));
    return;
  }
  fail(operation,
       Error{ErrorCode::kMismatch,
             "rank " + std::to_string(mismatch.peer.value) + " sends " +
                 std::to_string(mismatch.length) + " bytes where rank " +
                 std::to_string(endpoint_.config().rank.value) + " expects " +
                 std::to_string(expected) + " in " + name_of(operation) +
                 ". Both sides must use equal shapes and types"});
}

void Engine::check_signature(uint64_t group, uint64_t sequence, Rank peer,
                             const wire::Signature& theirs) {
  const auto at = groups_.find(group);
  if (at == groups_.end() || at->second.group->broken) return;
  const auto ours = at->second.recent.find(sequence);
  if (ours == at->second.recent.end() || ours->second == theirs) return;
  const Error error = disagreement(*at->second.group, sequence, ours->second, peer, theirs);
  if (Operation* operation = find_active(group, sequence)) {
    fail(*operation, error);
  } else {
    break_group(*at->second.group, error, /*tell_members=*/true);
  }
}

Operation* Engine::find_active(uint64_t group, uint64_t sequence) {
  for (const auto& [id, operation] : active_) {
    if (operation->is_point_to_point()) continue;
    if (operation->group().wire_id == group && operation->sequence == sequence) {
      return operation.get();
    }
  }
  return nullptr;
}

bool Engine::needs(const Operation& operation, Rank peer) const {
  const auto& steps = operation.request().schedule.steps;
  for (size_t i = 0; i < steps.size(); ++i) {
    if (operation.states[i].is_done) continue;
    const StepKind kind = steps[i].kind;
    if (kind == StepKind::kCopy || kind == StepKind::kPrepare || kind == StepKind::kFinish) {
      continue;
    }
    const uint32_t at = steps[i].peer == kAnySource ? operation.source_rank : steps[i].peer;
    if (at != kAnySource && operation.group().ranks[at] == peer) return true;
  }
  return false;
}

void Engine::on_peer_lost(Rank peer, const Error& error) {
  std::vector<std::shared_ptr<Operation>> affected;
  for (const auto& [id, operation] : active_) {
    if (needs(*operation, peer)) affected.push_back(operation);
  }
  for (const auto& operation : affected) {
    if (operation->is_done) continue;
    fail(*operation, Error{error.code, error.message + "; " + name_of(*operation) +
                                           " was waiting for it for " +
                                           in_seconds(now_ - operation->started_at)});
  }
}

void Engine::on_peer_left(Rank peer) {
  const auto error = endpoint_.peer_error(peer);
  if (error) on_peer_lost(peer, *error);
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

void Engine::inquire(Operation& operation) {
  operation.inquiry_interval =
      base::shorter(operation.inquiry_interval * 2, kInquiryIntervalMax);
  operation.inquiry_at = now_ + operation.inquiry_interval;
  if (operation.is_point_to_point()) return;
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
  if (at == groups_.end()) return;
  const bool has_started = status.signature.kind != 0;
  if (Operation* operation = find_active(status.group, status.operation)) {
    if (const auto rank = rank_in(operation->group(), peer)) {
      if (has_started) {
        operation->not_started.erase(*rank);
      } else {
        operation->not_started.insert(*rank);
      }
    }
  }
  if (status.wants_answer) {
    wire::StatusFrame answer;
    answer.group = status.group;
    answer.operation = status.operation;
    const auto ours = at->second.recent.find(status.operation);
    if (ours != at->second.recent.end()) answer.signature = ours->second;
    endpoint_.post_status(peer, answer);
  }
  if (has_started) check_signature(status.group, status.operation, peer, status.signature);
}

Error Engine::timeout_error(const Operation& operation) const {
  std::string text = name_of(operation) + " Timed out after " +
                     in_seconds(now_ - operation.started_at) + " on rank " +
                     std::to_string(endpoint_.config().rank.value);
  const char* separator = ", waiting for ";
  for (const uint32_t peer : silent_peers(operation)) {
    const Rank rank = operation.group().ranks[peer];
    text += separator + endpoint_.describe_peer(rank);
    separator = ", ";
    if (operation.not_started.contains(peer)) {
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
  const std::shared_ptr<Group> group = operation.shared_group();
  if (operation.is_done) return;
  release_steps(operation);
  finish(operation, error);
  if (!group->broken) break_group(*group, error, /*tell_members=*/true);
}

void Engine::break_group(Group& group, const Error& error, bool tell_members) {
  group.broken = error;
  std::vector<std::shared_ptr<Operation>> affected;
  for (const auto& [id, operation] : active_) {
    if (&operation->group() == &group) affected.push_back(operation);
  }
  for (const auto& operation : affected) fail(*operation, error);
  if (!tell_members) return;
  wire::AbortFrame abort;
  abort.group = group.wire_id;
  abort.code = static_cast<uint8_t>(error.code);
  abort.reason = error.message.substr(0, wire::AbortFrame::kReasonBytesMax);
  for (const Rank rank : group.ranks) {
    if (rank != endpoint_.config().rank) endpoint_.post_abort(rank, abort);
  }
}

void Engine::finish(Operation& operation, std::optional<Error> error) {
  const auto at = active_.find(operation.id);
  SF_CHECK(at != active_.end());
  operation.is_done = true;
  operation.error = std::move(error);
  completed_.push_back(std::move(at->second));
  active_.erase(at);
}

}  // namespace securefabric::collective
