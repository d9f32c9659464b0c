// How a fabric finds its peers: who is wanted, the thread that looks for them, and what the engines
// are told. The rest of Fabric is in fabric.cc.
#include <algorithm>
#include <exception>

#include "net/clock.h"
#include "net/fabric.h"

namespace securefabric::net {

using base::Duration;
using base::Error;
using base::ErrorCode;
using base::Instant;
using base::Rank;
using base::Result;
using base::Status;

namespace {

// An entry is there at the first look, unless the rank is late: each look asks a server that all
// ranks share, so it is asked less and less often.
constexpr Duration kResolveIntervalMin = Duration::millis(20);
constexpr Duration kResolveIntervalMax = Duration::millis(500);

}  // namespace

// Driving thread, engine held. A rank is asked for when an operation needs it, and now and then
// when packets come from it: worth a look now, but not to start over with quick ones.
void Fabric::want(const transport::PeerWanted& wanted, uint32_t origin) {
  const Instant at = now();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!known_.contains(wanted.peer)) {
      Wanted& entry =
          wanted_.try_emplace(wanted.peer, Wanted{at, at, kResolveIntervalMin}).first->second;
      entry.since = at;
      entry.next_at = at;
      entry.is_needed = entry.is_needed || !wanted.is_hint;
      wake_.notify_one();
      return;
    }
  }
  if (!wanted.is_hint) link_known(wanted.peer, origin);
}

void Fabric::link_known(Rank rank, uint32_t origin) {
  for (uint32_t number = 0; number < drivers_.size(); ++number) {
    if (number == origin) continue;
    drivers_[number]->hand_in(
        [rank](collective::Engine& engine, Instant at) { engine.link_peer(rank, at); });
  }
}

void Fabric::resolver_loop() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!is_stopping_) {
    const Instant at = now();
    // The engine fails an operation whose peer does not come; asking on is of no use then.
    std::erase_if(wanted_, [&](const auto& entry) {
      return at - entry.second.since > join_timeout_ + Duration::seconds(1);
    });
    Instant next_at;
    if (const auto rank = next_due(at, next_at)) {
      lock.unlock();
      const bool is_answered = resolve_once(*rank);
      lock.lock();
      if (is_answered) wanted_.erase(*rank);
    } else if (next_at.is_never()) {
      wake_.wait(lock);
    } else {
      wake_.wait_for(lock, std::chrono::nanoseconds((next_at - at).nanos()));
    }
  }
}

std::optional<Rank> Fabric::next_due(Instant at, Instant& next_at) {
  next_at = Instant::never();
  if (drivers_.front()->is_ending()) return std::nullopt;
  std::optional<Rank> first;
  for (const auto& [rank, wanted] : wanted_) {
    if (wanted.next_at >= next_at) continue;
    next_at = wanted.next_at;
    first = rank;
  }
  if (!first || next_at > at) return std::nullopt;
  Wanted& due = wanted_.at(*first);
  due.next_at = due.is_needed ? at + due.interval : Instant::never();
  due.interval = base::shorter(due.interval * 2, kResolveIntervalMax);
  return first;
}

bool Fabric::resolve_once(Rank rank) {
  std::set<std::string> boards;
  bool is_needed = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [id, group] : groups_) {
      const auto& ranks = group.ranks;
      if (std::find(ranks.begin(), ranks.end(), rank) != ranks.end()) boards.insert(group.board);
    }
    is_needed = wanted_.at(rank).is_needed;
  }
  for (const std::string& board : boards) {
    if (is_stopping_) return false;
    const auto peer = look_up(board, rank, is_needed);
    if (peer && !peer.value()) continue;
    if (!is_needed) return peer && learn(rank, *peer.value());
    answer(rank, peer);
    return true;
  }
  return false;
}

void Fabric::answer(Rank rank, const Result<std::optional<Peer>>& peer) {
  for (size_t number = 0; number < drivers_.size(); ++number) {
    (void)drivers_[number]->run([&](collective::Engine& engine, Instant at) {
      if (peer) {
        engine.install_peer((*peer.value())[number], at);
      } else {
        engine.fail_peer(rank, peer.error(), at);
      }
    });
  }
}

bool Fabric::learn(Rank rank, const Peer& peer) {
  bool is_known = true;
  for (size_t number = 0; number < drivers_.size(); ++number) {
    const Status status = drivers_[number]->run([&](collective::Engine& engine, Instant at) {
      is_known = engine.learn_peer(peer[number], at) && is_known;
    });
    is_known = status && is_known;
  }
  if (!is_known) return false;
  bool is_needed = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    known_.insert(rank);
    is_needed = wanted_.at(rank).is_needed;  // meanwhile; from now on want() sees to it
  }
  if (is_needed) link_known(rank, static_cast<uint32_t>(drivers_.size()));
  return true;
}

Result<std::optional<Fabric::Peer>> Fabric::look_up(const std::string& board, Rank rank,
                                                    bool is_needed) const {
  try {
    auto peer = resolve_(board, rank, is_needed);
    if (peer && peer.value() && peer.value()->size() != drivers_.size()) {
      return Error{ErrorCode::kConfig, "rank " + std::to_string(rank.value) + " runs " +
                                           std::to_string(peer.value()->size()) +
                                           " engines, this rank " +
                                           std::to_string(drivers_.size())};
    }
    return peer;
  } catch (const std::exception& raised) {
    return Error{ErrorCode::kSystem, "the entry of rank " + std::to_string(rank.value) +
                                         " cannot be read: " + raised.what()};
  }
}

}  // namespace securefabric::net
