// Running the steps of operations: posting sends and receives, matching, completing.
#include "collective/engine.h"

namespace securefabric::collective {

using base::Rank;
using transport::Match;
using transport::PostedReceive;

void Engine::run_ready(Operation& operation, std::vector<uint32_t> ready) {
  // A step that is complete at once makes others ready; a list instead of recursion, because a
  // schedule can be thousands of steps deep.
  for (size_t i = 0; i < ready.size(); ++i) {
    const uint32_t index = ready[i];
    if (!run_step(operation, index)) continue;
    operation.states[index].is_done = true;
    --operation.steps_left;
    for (uint32_t d = operation.dependent_begin[index]; d < operation.dependent_begin[index + 1];
         ++d) {
      if (--operation.states[operation.dependents[d]].waits_for == 0) {
        ready.push_back(operation.dependents[d]);
      }
    }
  }
  if (operation.steps_left == 0) finish(operation, std::nullopt);
}

// Starts a step; true when that completed it.
bool Engine::run_step(Operation& operation, uint32_t index) {
  const Step& step = operation.request().schedule.steps[index];
  operation.states[index].is_started = true;
  if (step.kind == StepKind::kSend) return post_send(operation, index);
  if (is_receive(step.kind)) {
    post_receive(operation, index);
    return false;
  }
  operation.run_local(step);
  return true;
}

wire::MessageKey Engine::key_of(const Operation& operation, const Step& step) const {
  wire::MessageKey key;
  key.group = operation.group().wire_id;
  key.operation = operation.sequence;
  key.slot = step.slot;
  if (operation.is_point_to_point()) {
    key.channel = wire::Channel::kPointToPoint;
    key.slot = operation.request().tag;
  }
  return key;
}

namespace {

// Whether what is sent was just received, and summed up with our own or not. What was only prepared
// was so long ago: all of it at once, before the first packet left.
bool was_just_made(const Schedule& schedule, const Step& send) {
  const auto dependencies = schedule.dependencies_of(send);
  return std::any_of(dependencies.begin(), dependencies.end(), [&](uint32_t index) {
    const Step& step = schedule.steps[index];
    const bool makes = is_receive(step.kind) || step.kind == StepKind::kFinish;
    return makes && step.target.overlaps(send.target);
  });
}

}  // namespace

// True when the bytes were copied, which completes the step.
bool Engine::post_send(Operation& operation, uint32_t index) {
  const Step& step = operation.request().schedule.steps[index];
  transport::SendRequest request;
  request.key = key_of(operation, step);
  request.signature = operation.signature();
  request.bytes = operation.bytes_of(step.target);
  request.is_passed_on = was_just_made(operation.request().schedule, step);
  request.token = next_token_++;
  if (endpoint_.post_send(operation.group().ranks[step.peer], request)) return true;
  operation.states[index].token = request.token;
  tokens_[request.token] = StepRef{&operation, index};
  return false;
}

void Engine::post_receive(Operation& operation, uint32_t index) {
  const OperationRequest& request = operation.request();
  const Step& step = request.schedule.steps[index];
  Operation::StepState& state = operation.states[index];
  state.token = next_token_++;
  tokens_[state.token] = StepRef{&operation, index};
  const PostedReceive receive{state.token, &state.sink, step.target.length, operation.signature()};
  const uint64_t group = operation.group().wire_id;

  if (operation.is_point_to_point()) {
    std::optional<Rank> source;
    if (step.peer != kAnySource) source = operation.group().ranks[step.peer];
    point_to_point_.post(group, request.tag, source, receive);
    unmatched_tags_.emplace(group, request.tag);
    if (source && endpoint_.is_short_of_credit(*source)) pull(operation, index);
    return;
  }
  const Rank peer = operation.group().ranks[step.peer];
  const auto held = collectives_.post({group, operation.sequence, peer, step.slot}, receive);
  if (held) return attach(peer, held->message_id, receive);
  // The sender of a large message waits until it knows that a receive is posted.
  if (step.target.length > transport::kEagerMessageBytesMax) {
    endpoint_.post_grant(peer, key_of(operation, step), step.target.length);
  } else if (endpoint_.is_short_of_credit(peer)) {
    pull(operation, index);
  }
}

// Asks for the message of a posted receive, which may wait at its sender for want of credit.
void Engine::pull(const Operation& operation, uint32_t index) {
  const Step& step = operation.request().schedule.steps[index];
  if (step.peer == kAnySource) return;  // nobody knows whose
  const Rank peer = operation.group().ranks[step.peer];
  wire::MessageKey key = key_of(operation, step);
  if (operation.is_point_to_point()) {
    const auto number =
        point_to_point_.awaited_by(key.group, key.slot, peer, operation.states[index].token);
    if (!number) return;
    key.operation = *number;
  } else if (transport::is_granted_unasked(key, step.target.length)) {
    return;
  }
  endpoint_.post_pull(peer, key, step.target.length);
}

void Engine::attach(Rank peer, uint64_t message_id, const PostedReceive& receive) {
  endpoint_.attach_receive(peer, message_id, receive);
}

Match Engine::match(Rank peer, uint64_t message_id, const wire::MessageKey& key, uint64_t length,
                    const wire::Signature* signature) {
  const auto group = groups_.find(key.group);
  if (closed_groups_.contains(key.group)) return {Match::Verdict::kDiscard, {}};
  const bool is_known = group != groups_.end();
  if (is_known && group->second.group->broken) return {Match::Verdict::kDiscard, {}};
  if (is_known && !group->second.members.contains(peer)) return {Match::Verdict::kDiscard, {}};
  if (is_known && signature != nullptr && signature->group_tail != group->second.group->tail) {
    claims_.push_back({key.group, key.operation, peer, *signature});
    return {Match::Verdict::kDiscard, {}};
  }

  HeldMessage message{peer, message_id, length, std::nullopt};
  if (signature != nullptr) message.signature = *signature;
  std::optional<PostedReceive> receive;
  if (key.channel == wire::Channel::kPointToPoint) {
    receive = point_to_point_.offer(key.group, key.slot, key.operation, message);
    unmatched_tags_.emplace(key.group, key.slot);
    if (receive) tokens_.at(receive->token).operation->source_rank = rank_in(key.group, peer);
  } else {
    receive = collectives_.take({key.group, key.operation, peer, key.slot}, message);
    if (!receive && signature != nullptr) {
      claims_.push_back({key.group, key.operation, peer, *signature});
    }
  }
  if (!receive) return {Match::Verdict::kHold, {}};
  return {Match::Verdict::kPosted, *receive};
}

void Engine::match_point_to_point(uint64_t group, uint32_t tag) {
  while (const auto pair = point_to_point_.take_pair(group, tag)) {
    const StepRef ref = tokens_.at(pair->receive.token);
    ref.operation->source_rank = rank_in(group, pair->message.peer);
    attach(pair->message.peer, pair->message.message_id, pair->receive);
  }
}

void Engine::complete_step(StepRef ref) {
  Operation& operation = *ref.operation;
  operation.states[ref.step].is_done = true;
  --operation.steps_left;
  std::vector<uint32_t> ready;
  for (uint32_t d = operation.dependent_begin[ref.step];
       d < operation.dependent_begin[ref.step + 1]; ++d) {
    if (--operation.states[operation.dependents[d]].waits_for == 0) {
      ready.push_back(operation.dependents[d]);
    }
  }
  run_ready(operation, std::move(ready));
}

// Takes back what the operations of a group have posted, so that their memory may go away. One walk
// for all of them, for a failure ends them all.
void Engine::release_group(const Group& group,
                           const std::vector<std::shared_ptr<Operation>>& operations) {
  for (const Rank rank : group.ranks) endpoint_.withdraw_group(rank, group.wire_id);
  collectives_.withdraw_group(group.wire_id);
  point_to_point_.withdraw_group(group.wire_id);
  for (const auto& operation : operations) {
    for (const Operation::StepState& state : operation->states) {
      if (state.is_started && !state.is_done && state.token != 0) tokens_.erase(state.token);
    }
  }
}

}  // namespace securefabric::collective
