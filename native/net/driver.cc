#include "net/driver.h"

#include <sched.h>

#include <algorithm>

#include "crypto/secret.h"
#include "net/clock.h"

namespace securefabric::net {

using base::Duration;
using base::Error;
using base::ErrorCode;
using base::Instant;
using base::Result;
using base::Status;
using collective::Operation;

namespace {

// How often the progress thread looks whether it is needed while others drive.
constexpr Duration kLazyTick = Duration::millis(2);
// Waiters that do not drive re-check at least this often; a missed hand-over costs no more.
constexpr Duration kIdleWaiterTick = Duration::millis(5);

// Calls on_done once, whoever comes first, and lets go of what it holds: it may own the operation.
void call_back(Operation& operation) {
  if (operation.is_notified.exchange(true) || !operation.on_done) return;
  const std::function<void()> on_done = std::move(operation.on_done);
  operation.on_done = nullptr;
  on_done();
}

}  // namespace

Result<std::unique_ptr<Driver>> Driver::make(transport::EndpointConfig config,
                                             std::vector<UdpSocket> sockets, DriverOptions options,
                                             WantedHandler wanted) {
  auto waiter_poller = Poller::make();
  if (!waiter_poller) return waiter_poller.error();
  auto progress_poller = Poller::make();
  if (!progress_poller) return progress_poller.error();
  std::unique_ptr<Driver> driver(new Driver(std::move(config), std::move(sockets), options,
                                            std::move(wanted), std::move(waiter_poller).value(),
                                            std::move(progress_poller).value()));
  if (const Status status = driver->watch_sockets(); !status) return status.error();
  driver->start_threads();
  return driver;
}

Driver::Driver(transport::EndpointConfig config, std::vector<UdpSocket> sockets,
               DriverOptions options, WantedHandler wanted, Poller waiter_poller,
               Poller progress_poller)
    : options_(options),
      wanted_(std::move(wanted)),
      engine_(std::move(config)),
      port_(std::move(sockets)),
      waiter_poller_(std::move(waiter_poller)),
      progress_poller_(std::move(progress_poller)) {}

// Never called in a forked child: whoever owns a driver leaks it there (Fabric).
Driver::~Driver() { shutdown(Duration()); }

Status Driver::watch_sockets() {
  for (size_t i = 0; i < port_.sockets().size(); ++i) {
    const int fd = port_.sockets()[i].fd();
    const auto token = static_cast<uint32_t>(i);
    if (const Status status = waiter_poller_.add(fd, token); !status) return status;
    if (const Status status = progress_poller_.add(fd, token); !status) return status;
  }
  return base::ok_status();
}

void Driver::start_threads() {
  progress_thread_ = std::make_unique<std::thread>([this] { progress_loop(); });
  completion_thread_ = std::make_unique<std::thread>([this] { completion_loop(); });
}

Status Driver::refuse_if_unusable() const {
  if (crypto::forked_child()) {
    return Error{ErrorCode::kForked,
                 "this process was forked after securefabric was initialised: the copy sends "
                 "nothing, because it would reuse the parent's nonces. Initialise process groups "
                 "after the fork, or start workers with the 'spawn' method"};
  }
  if (is_ended_.load()) {
    return Error{ErrorCode::kAborted, "the fabric of this process was shut down"};
  }
  return base::ok_status();
}

// --- Submitting -------------------------------------------------------------------------------

Status Driver::submit(const std::shared_ptr<Operation>& operation) {
  if (const Status status = refuse_if_unusable(); !status) return status;
  append([operation](collective::Engine& engine, Instant now) { engine.start(operation, now); });
  serve_tasks();
  if (!operation->is_synchronous && !operation->is_visible.load()) call_progress();
  return base::ok_status();
}

Status Driver::post(EngineTask task) {
  if (const Status status = refuse_if_unusable(); !status) return status;
  append(std::move(task));
  serve_tasks();
  return base::ok_status();
}

Status Driver::run(EngineTask task) {
  if (const Status status = refuse_if_unusable(); !status) return status;
  std::atomic<bool> has_run{false};
  append([&](collective::Engine& engine, Instant now) {
    task(engine, now);
    has_run.store(true);
  });
  while (!has_run.load()) {
    serve_tasks();
    if (has_run.load()) break;
    std::unique_lock<std::mutex> lock(waiters_mutex_);
    ++idle_waiters_;
    engine_free_.wait_for(lock, std::chrono::microseconds(200));
    --idle_waiters_;
  }
  return base::ok_status();
}

void Driver::append(EngineTask task) {
  const std::lock_guard<std::mutex> lock(tasks_mutex_);
  tasks_.push_back(std::move(task));
  has_tasks_.store(true);
}

void Driver::serve_tasks() {
  while (has_tasks_.load()) {
    std::unique_lock<std::mutex> lock(engine_mutex_, std::try_to_lock);
    if (!lock.owns_lock()) {
      // The holder looks at has_tasks_ before it sleeps and after it lets go.
      if (waiter_sleeps_.load()) waiter_poller_.wake();
      return;
    }
    turn();
    // No release_engine: whoever called this goes on to wait, or calls the progress thread.
  }
}

void Driver::take_tasks() {
  if (!has_tasks_.load()) return;
  std::deque<EngineTask> taken;
  {
    const std::lock_guard<std::mutex> lock(tasks_mutex_);
    taken.swap(tasks_);
    has_tasks_.store(false);
  }
  for (EngineTask& task : taken) task(engine_, now());
}

// --- One turn; only while holding engine_mutex_ -----------------------------------------------

bool Driver::turn() {
  take_tasks();
  const Instant at = now();
  const auto received = port_.receive(engine_, at);
  if (!received) {
    fail_everything(received.error());
    return true;
  }
  if (engine_.poll_timeout() <= at) engine_.handle_timeout(at);
  const auto sent = port_.transmit(engine_, at);
  if (!sent) {
    fail_everything(sent.error());
    return true;
  }
  publish();
  engine_deadline_.store(engine_.poll_timeout().nanos());
  return received.value() || sent.value();
}

void Driver::publish() {
  while (const auto wanted = engine_.poll_wanted()) wanted_(*wanted);
  bool any = false;
  while (auto operation = engine_.poll_completed()) {
    any = true;
    operation->is_visible.store(true);
    if (operation->waiters.load() > 0) continue;
    if (operation->is_synchronous) {
      deferred_.push_back(std::move(operation));
    } else {
      notify(operation);
    }
  }
  if (any && idle_waiters_.load() > 0) {
    const std::lock_guard<std::mutex> lock(waiters_mutex_);
    engine_free_.notify_all();
  }
}

void Driver::fail_everything(const Error& error) {
  engine_.abort_all(error, now());
  publish();
}

// --- Waiting ----------------------------------------------------------------------------------

bool Driver::wait(const std::shared_ptr<Operation>& operation, Instant until) {
  if (crypto::forked_child()) return false;
  ++operation->waiters;
  while (!operation->is_visible.load() && !is_ended_.load()) {
    std::unique_lock<std::mutex> lock(engine_mutex_, std::try_to_lock);
    if (lock.owns_lock()) {
      drives_.fetch_add(1);
      drive_until_done(*operation, until);
      release_engine(lock);
      break;
    }
    const Instant at = now();
    if (at >= until) break;
    std::unique_lock<std::mutex> idle(waiters_mutex_);
    ++idle_waiters_;
    const Duration pause = base::shorter(until - at, kIdleWaiterTick);
    if (!operation->is_visible.load()) {
      engine_free_.wait_for(idle, std::chrono::nanoseconds(pause.nanos()));
    }
    --idle_waiters_;
  }
  --operation->waiters;
  if (!operation->is_visible.load()) return false;
  call_back(*operation);
  return true;
}

void Driver::drive_until_done(const Operation& operation, Instant until) {
  Instant spin_until = now() + options_.spin;
  while (!operation.is_visible.load()) {
    if (turn()) {
      spin_until = now() + options_.spin;
      continue;
    }
    // A task that others appended may have ended the operation without any packet.
    if (operation.is_visible.load()) return;
    const Instant at = now();
    if (at >= until || is_ended_.load()) return;
    if (at >= spin_until) {
      sleep_in_wait(until);
    } else if (options_.yields_while_spinning) {
      sched_yield();
    }
  }
}

void Driver::sleep_in_wait(Instant until) {
  waiter_sleeps_.store(true);
  if (!has_tasks_.load()) {
    if (port_.is_blocked()) {
      for (size_t i = 0; i < port_.sockets().size(); ++i) {
        (void)waiter_poller_.watch_writable(port_.sockets()[i].fd(), static_cast<uint32_t>(i), true);
      }
    }
    const Instant deadline = base::earlier(until, engine_.poll_timeout());
    (void)waiter_poller_.wait(deadline - now());
    if (port_.is_blocked()) {
      for (size_t i = 0; i < port_.sockets().size(); ++i) {
        (void)waiter_poller_.watch_writable(port_.sockets()[i].fd(), static_cast<uint32_t>(i),
                                            false);
      }
    }
  }
  waiter_sleeps_.store(false);
}

void Driver::release_engine(std::unique_lock<std::mutex>& lock) {
  const bool has_work = !engine_.is_idle();
  lock.unlock();
  if (idle_waiters_.load() > 0) {
    const std::lock_guard<std::mutex> idle(waiters_mutex_);
    engine_free_.notify_all();
  }
  serve_tasks();
  // Others are running operations and nobody drives: the progress thread must. If only timers
  // remain, the next look of a lazy progress thread is early enough.
  const bool is_lazy = progress_is_lazy_.load();
  if (has_work ? idle_waiters_.load() == 0 : !is_lazy) call_progress();
}

// --- Our threads ------------------------------------------------------------------------------

void Driver::call_progress() {
  if (progress_is_lazy_.load()) {
    const std::lock_guard<std::mutex> lock(progress_mutex_);
    progress_called_ = true;
    progress_wake_.notify_one();
  } else if (engine_deadline_.load() < progress_deadline_.load()) {
    progress_poller_.wake();
  }
}

void Driver::progress_loop() {
  uint64_t drives_seen = 0;
  while (!is_ended_.load()) {
    Instant deadline = now() + kLazyTick;
    bool is_driven_by_others = true;
    if (std::unique_lock<std::mutex> lock(engine_mutex_, std::try_to_lock); lock.owns_lock()) {
      is_driven_by_others = drives_.load() != drives_seen;
      drives_seen = drives_.load();
      while (turn()) {
      }
      deadline = port_.is_blocked() ? now() + Duration::micros(200) : engine_.poll_timeout();
      for (const auto& operation : deferred_) notify(operation);
      deferred_.clear();
    }
    if (is_ended_.load()) return;
    if (is_driven_by_others) {
      std::unique_lock<std::mutex> lock(progress_mutex_);
      progress_is_lazy_.store(true);
      if (!progress_called_) {
        progress_wake_.wait_for(lock, std::chrono::nanoseconds(kLazyTick.nanos()));
      }
      if (progress_called_) drives_seen = drives_.load();
      progress_called_ = false;
      progress_is_lazy_.store(false);
      continue;
    }
    progress_deadline_.store(deadline.nanos());
    if (has_tasks_.load()) continue;
    (void)progress_poller_.wait(deadline.is_never() ? Duration::forever() : deadline - now());
    progress_deadline_.store(0);
  }
}

void Driver::notify(const std::shared_ptr<Operation>& operation) {
  const std::lock_guard<std::mutex> lock(completion_mutex_);
  completions_.push_back(operation);
  completion_wake_.notify_one();
}

void Driver::completion_loop() {
  while (true) {
    std::shared_ptr<Operation> operation;
    {
      std::unique_lock<std::mutex> lock(completion_mutex_);
      completion_wake_.wait(lock, [this] { return !completions_.empty() || is_ended_.load(); });
      if (completions_.empty()) return;
      operation = std::move(completions_.front());
      completions_.pop_front();
    }
    call_back(*operation);
  }
}

// --- The end ----------------------------------------------------------------------------------

void Driver::drain(Duration limit) {
  const Instant until = now() + limit;
  bool is_drained = false;
  while (!is_drained && now() < until) {
    const Status status = run([&](collective::Engine& engine, Instant) {
      is_drained = engine.endpoint().is_drained();
    });
    if (!status || is_drained) return;
    if (std::unique_lock<std::mutex> lock(engine_mutex_, std::try_to_lock); lock.owns_lock()) turn();
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

void Driver::shutdown(Duration drain_limit) {
  const std::lock_guard<std::mutex> once(shutdown_mutex_);
  if (is_ended_.load()) return;
  drain(drain_limit);
  for (int copy = 0; copy < transport::kGoodbyeCopies; ++copy) {
    (void)run([](collective::Engine& engine, Instant) { engine.endpoint().post_goodbye(); });
    const std::lock_guard<std::mutex> lock(engine_mutex_);
    turn();
  }
  const Error error{ErrorCode::kAborted, "the fabric of this process was shut down"};
  {
    const std::lock_guard<std::mutex> lock(engine_mutex_);
    fail_everything(error);
    for (const auto& operation : deferred_) notify(operation);
    deferred_.clear();
  }
  is_ended_.store(true);
  progress_poller_.wake();
  waiter_poller_.wake();
  {
    const std::lock_guard<std::mutex> lock(progress_mutex_);
    progress_called_ = true;
    progress_wake_.notify_one();
  }
  {
    const std::lock_guard<std::mutex> lock(completion_mutex_);
    completion_wake_.notify_one();
  }
  progress_thread_->join();
  // A completion callback may be what drops the last reference to us.
  if (completion_thread_->get_id() == std::this_thread::get_id()) {
    completion_thread_->detach();
  } else {
    completion_thread_->join();
  }
}

}  // namespace securefabric::net
