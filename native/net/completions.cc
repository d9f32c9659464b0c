#include "net/completions.h"

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>

#include "net/clock.h"

namespace securefabric::net {

using base::Duration;
using base::Instant;
using collective::Operation;

namespace {

thread_local bool is_calling_thread = false;  // it belongs to a Completions, whichever

}  // namespace

void call_back(Operation& operation) {
  if (operation.is_notified.exchange(true) || !operation.on_done) return;
  const std::function<void()> on_done = std::move(operation.on_done);
  operation.on_done = nullptr;
  on_done();
}

struct Completions::State {
  explicit State(Duration how_patient) : patience(how_patient) {}

  const Duration patience;
  std::mutex mutex;  // guards what follows
  std::condition_variable changed;
  std::deque<std::shared_ptr<Operation>> queue;
  Instant taken_at;       // when the last one was taken from the queue
  size_t threads = 0;     // that run; the last to leave says so by `changed`
  size_t idle = 0;        // of these, waiting for `changed`
  size_t calling = 0;     // of these, in a callback
  bool is_ended = false;  // threads leave when the queue is empty
};

Completions::Completions(Duration patience) : state_(std::make_shared<State>(patience)) {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  start_thread(state_);
}

Completions::~Completions() {
  end();
}

void Completions::push(std::shared_ptr<Operation> operation) {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  state_->queue.push_back(std::move(operation));
  state_->changed.notify_one();
}

void Completions::end() {
  std::unique_lock<std::mutex> lock(state_->mutex);
  state_->is_ended = true;
  state_->changed.notify_all();
  if (is_calling()) return;
  while (state_->threads > 0) state_->changed.wait(lock);
}

bool Completions::is_calling() {
  return is_calling_thread;
}

// Holding the mutex. Detached, because a callback cannot join its own thread; end() counts instead.
void Completions::start_thread(const std::shared_ptr<State>& state) {
  std::thread([state] { serve(state); }).detach();
  ++state->threads;
}

void Completions::serve(const std::shared_ptr<State>& state) {
  is_calling_thread = true;
  std::unique_lock<std::mutex> lock(state->mutex);
  while (true) {
    if (state->queue.empty()) {
      if (state->is_ended || state->idle > 1) break;
      ++state->idle;
      state->changed.wait(lock);
      --state->idle;
      continue;
    }
    if (state->calling > 0) {
      const Duration left = state->taken_at + state->patience - now();
      if (left > Duration()) {
        ++state->idle;
        state->changed.wait_for(lock, std::chrono::nanoseconds(left.nanos()));
        --state->idle;
        continue;
      }
    }
    std::shared_ptr<Operation> operation = std::move(state->queue.front());
    state->queue.pop_front();
    state->taken_at = now();
    if (state->idle == 0) {
      // Without one that stands by there is one less to overtake; the next to be taken tries again.
      try {
        start_thread(state);
      } catch (const std::system_error&) {
      }
    }
    ++state->calling;
    lock.unlock();
    call_back(*operation);
    operation.reset();
    lock.lock();
    --state->calling;
  }
  --state->threads;
  state->changed.notify_all();
}

}  // namespace securefabric::net
