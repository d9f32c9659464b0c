#include "net/driver.h"

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
// The longest sleep of the progress thread: a synchronous operation that was done while it slept,
// and that nobody waits for, is announced after at most this.
constexpr Duration kProgressTick = Duration::seconds(1);
// How often it tries to send again while a socket's buffer is full.
constexpr Duration kBlockedTick = Duration::micros(200);
// Peers and timers are served between so many submitted tasks.
constexpr size_t kTasksPerTurn = 256;
// Threads that stand by look again at least this often; see the table in driver.h.
constexpr Duration kIdleWaiterTick = Duration::millis(5);

std::chrono::nanoseconds to_chrono(Duration duration) {
  return std::chrono::nanoseconds(duration.nanos());
}

Error ended_error() {
  return Error{ErrorCode::kAborted, "the fabric of this process was shut down"};
}

}  // namespace

Result<std::unique_ptr<Driver>> Driver::make(transport::EndpointConfig config,
                                             std::vector<UdpSocket> sockets, DriverOptions options,
                                             WantedHandler wanted, BrokenHandler broken) {
  auto waiter_poller = Poller::make();
  if (!waiter_poller) return waiter_poller.error();
  auto progress_poller = Poller::make();
  if (!progress_poller) return progress_poller.error();
  std::unique_ptr<Driver> driver(new Driver(
      std::move(config), std::move(sockets), options, std::move(wanted), std::move(broken),
      std::move(waiter_poller).value(), std::move(progress_poller).value()));
  if (const Status status = driver->watch_sockets(); !status) return status.error();
  driver->start_threads();
  return driver;
}

Driver::Driver(transport::EndpointConfig config, std::vector<UdpSocket> sockets,
               DriverOptions options, WantedHandler wanted, BrokenHandler broken,
               Poller waiter_poller, Poller progress_poller)
    : options_(options),
      wanted_(std::move(wanted)),
      broken_(std::move(broken)),
      engine_(std::move(config)),
      port_(std::move(sockets)),
      waiter_poller_(std::move(waiter_poller)),
      progress_poller_(std::move(progress_poller)) {}

// Never called in a forked child: whoever owns a driver leaks it there (Fabric).
Driver::~Driver() {
  shutdown(Duration());
}

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
}

Status Driver::refuse_if_unusable() const {
  if (crypto::forked_child()) {
    return Error{ErrorCode::kForked,
                 "this process was forked after securefabric was initialised: the copy sends "
                 "nothing, because it would reuse the parent's nonces. Initialise process groups "
                 "after the fork, or start workers with the 'spawn' method"};
  }
  if (is_ending_.load()) return ended_error();
  return base::ok_status();
}

// --- Submitting -------------------------------------------------------------------------------

Status Driver::submit(const std::shared_ptr<Operation>& operation) {
  if (const Status status = refuse_if_unusable(); !status) return status;
  const bool is_accepted = append(
      [operation](collective::Engine& engine, Instant now) { engine.start(operation, now); });
  if (!is_accepted) return ended_error();
  serve_tasks();
  if (!operation->is_synchronous && !operation->is_visible.load()) call_progress();
  return base::ok_status();
}

Status Driver::delegate(const std::shared_ptr<Operation>& operation) {
  if (const Status status = refuse_if_unusable(); !status) return status;
  const bool is_accepted = append(
      [operation](collective::Engine& engine, Instant now) { engine.start(operation, now); });
  if (!is_accepted) return ended_error();
  call_driver();
  return base::ok_status();
}

Status Driver::post(EngineTask task) {
  if (const Status status = refuse_if_unusable(); !status) return status;
  if (!append(std::move(task))) return ended_error();
  serve_tasks();
  hand_over();
  return base::ok_status();
}

Status Driver::run(const EngineTask& task) {
  if (const Status status = refuse_if_unusable(); !status) return status;
  bool has_run = false;  // guarded by waiters_mutex_
  const bool is_accepted = append([&](collective::Engine& engine, Instant now) {
    task(engine, now);
    // Notified under the mutex: once it is free, run() may return and has_run be gone.
    const std::lock_guard<std::mutex> lock(waiters_mutex_);
    has_run = true;
    task_ran_.notify_all();
  });
  if (!is_accepted) return ended_error();
  while (true) {
    serve_tasks();
    std::unique_lock<std::mutex> lock(waiters_mutex_);
    if (task_ran_.wait_for(lock, to_chrono(kIdleWaiterTick), [&] { return has_run; })) break;
  }
  hand_over();
  return base::ok_status();
}

void Driver::hand_in(EngineTask task) {
  if (append(std::move(task))) call_driver();
}

bool Driver::append(EngineTask task) {
  const std::lock_guard<std::mutex> lock(tasks_mutex_);
  if (tasks_are_closed_) return false;
  tasks_.push_back(std::move(task));
  has_tasks_.store(true);
  return true;
}

void Driver::serve_tasks() {
  bool had_engine = false;
  while (has_tasks_.load()) {
    std::unique_lock<std::mutex> lock(engine_mutex_, std::try_to_lock);
    if (!lock.owns_lock()) {
      // The holder looks at has_tasks_ before it sleeps and after it lets go.
      if (waiter_sleeps_.load()) waiter_poller_.wake();
      break;
    }
    had_engine = true;
    start_tasks();
    // No release_engine: whoever called this goes on to wait, or hands over.
  }
  if (had_engine && idle_waiters_.load() > 0) wake_idle_waiters();
}

void Driver::call_driver() {
  if (waiter_sleeps_.load()) waiter_poller_.wake();
  progress_poller_.wake();  // it may be in epoll, or lazy
  call_progress();
}

void Driver::take_tasks() {
  if (!has_tasks_.load()) return;
  std::deque<EngineTask> taken;
  {
    const std::lock_guard<std::mutex> lock(tasks_mutex_);
    if (tasks_.size() <= kTasksPerTurn) {
      taken.swap(tasks_);
    } else {
      const auto end = tasks_.begin() + static_cast<ptrdiff_t>(kTasksPerTurn);
      taken.assign(std::move_iterator(tasks_.begin()), std::move_iterator(end));
      tasks_.erase(tasks_.begin(), end);
    }
    has_tasks_.store(!tasks_.empty());
  }
  for (EngineTask& task : taken) task(engine_, now());
}

// --- One turn; only while holding engine_mutex_ -----------------------------------------------

// The part of a turn that others have asked for. What has arrived can wait for whoever drives next:
// a caller that submits a synchronous operation does so at once.
void Driver::start_tasks() {
  take_tasks();
  if (fatal_) return fail_everything(*fatal_);
  publish_breaks();
  const auto sent = port_.transmit(engine_, now());
  if (!sent) return on_socket_error(sent.error());
  publish();
  note_state();
}

bool Driver::turn() {
  take_tasks();
  if (fatal_) {
    fail_everything(*fatal_);
    return false;
  }
  const Instant at = now();
  const auto received = port_.receive(engine_, at);
  if (!received) {
    on_socket_error(received.error());
    return false;
  }
  if (engine_.poll_timeout() <= at) engine_.handle_timeout(at);
  publish_breaks();
  const auto sent = port_.transmit(engine_, at);
  if (!sent) {
    on_socket_error(sent.error());
    return false;
  }
  publish();
  note_state();
  return received.value() || sent.value();
}

// Before the members hear of it: one of them could otherwise pass it on to another engine of this
// rank first, whose error would then name that member.
void Driver::publish_breaks() {
  while (const auto broken = engine_.poll_broken()) {
    if (broken_) broken_(*broken);
  }
}

void Driver::publish() {
  while (const auto wanted = engine_.poll_wanted()) wanted_(*wanted);
  publish_breaks();  // those of fail_everything(), which sends nothing
  bool any = false;
  while (auto operation = engine_.poll_completed()) {
    any = true;
    operation->is_visible.store(true);
    if (operation->waiters.load() > 0) continue;
    if (operation->is_synchronous) {
      std::erase_if(deferred_, [](const auto& earlier) { return earlier->is_notified.load(); });
      deferred_.push_back(std::move(operation));
    } else {
      completions_.push(std::move(operation));
    }
  }
  if (any && idle_waiters_.load() > 0) wake_idle_waiters();
}

void Driver::note_state() {
  engine_deadline_.store(engine_.poll_timeout().nanos());
  has_work_.store(!engine_.is_idle());
}

// The sockets would make every epoll return at once, and there is nothing to expect of them.
void Driver::on_socket_error(const Error& error) {
  fatal_ = error;
  for (const UdpSocket& socket : port_.sockets()) {
    (void)waiter_poller_.remove(socket.fd());
    (void)progress_poller_.remove(socket.fd());
  }
  fail_everything(error);
}

void Driver::fail_everything(const Error& error) {
  engine_.abort_all(error, /*is_told_by_others=*/fatal_.has_value(), now());
  publish();
  engine_deadline_.store(Instant::never().nanos());
  has_work_.store(false);
}

// Nobody has come to wait for these.
void Driver::flush_deferred() {
  for (const auto& operation : deferred_) {
    if (!operation->is_notified.load()) completions_.push(operation);
  }
  deferred_.clear();
}

// --- Waiting ----------------------------------------------------------------------------------

bool Driver::wait(const std::shared_ptr<Operation>& operation, Instant until) {
  if (crypto::forked_child()) return false;
  ++operation->waiters;
  bool has_stood_by = false;  // others may rely on us to drive next
  while (!operation->is_visible.load() && !is_ended_.load()) {
    std::unique_lock<std::mutex> engine(engine_mutex_, std::defer_lock);
    if (is_ending_.load() || !engine.try_lock()) {
      const Instant at = now();
      if (at >= until) break;
      stand_by(*operation, engine, base::shorter(until - at, kIdleWaiterTick));
      has_stood_by = true;
      if (!engine.owns_lock()) continue;
    }
    drives_.fetch_add(1);
    drive_until_done(*operation, until);
    release_engine(engine);
    has_stood_by = false;
    if (!operation->is_visible.load() && now() >= until) break;
  }
  if (has_stood_by) hand_over();
  // From here on publish() announces the operation, unless it is visible to us below.
  --operation->waiters;
  if (!operation->is_visible.load()) return false;
  call_back(*operation);
  return true;
}

void Driver::stand_by(const Operation& operation, std::unique_lock<std::mutex>& engine,
                      Duration limit) {
  std::unique_lock<std::mutex> lock(waiters_mutex_);
  ++idle_waiters_;
  // Whoever lets go of the engine from now on wakes us; it may have happened just before.
  const bool must_wait = !operation.is_visible.load() && !is_ended_.load() &&
                         (is_ending_.load() || !engine.try_lock());
  if (must_wait) engine_free_.wait_for(lock, to_chrono(limit));
  --idle_waiters_;
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
    if (at >= until || is_ending_.load()) return;
    if (at >= spin_until) {
      sleep_in_wait(until);
    } else if (options_.yields_while_spinning) {
      give_way();
    }
  }
}

void Driver::sleep_in_wait(Instant until) {
  waiter_sleeps_.store(true);
  if (!has_tasks_.load() && !is_ending_.load()) {
    const std::optional<uint8_t> blocked = port_.blocked_socket();
    const auto watch_writable = [&](bool is_wanted) {
      if (!blocked) return;
      const int fd = port_.sockets()[*blocked].fd();
      (void)waiter_poller_.watch_writable(fd, *blocked, is_wanted);
    };
    watch_writable(true);
    const Instant deadline = base::earlier(until, engine_.poll_timeout());
    const auto polled = waiter_poller_.wait(deadline - now());
    watch_writable(false);
    if (!polled) on_socket_error(polled.error());
  }
  waiter_sleeps_.store(false);
}

void Driver::release_engine(std::unique_lock<std::mutex>& lock) {
  lock.unlock();
  serve_tasks();
  hand_over();
}

void Driver::hand_over() {
  if (idle_waiters_.load() > 0) return wake_idle_waiters();
  if (has_work_.load()) return call_progress();
  // Only timers remain: the next look of a lazy progress thread is early enough for them.
  remind_progress();
}

void Driver::wake_idle_waiters() {
  const std::lock_guard<std::mutex> lock(waiters_mutex_);
  engine_free_.notify_all();
}

// --- Our threads ------------------------------------------------------------------------------

void Driver::call_progress() {
  progress_called_.store(true);
  if (!progress_is_lazy_.load()) return remind_progress();
  const std::lock_guard<std::mutex> lock(progress_mutex_);
  progress_wake_.notify_one();
}

void Driver::remind_progress() {
  if (engine_deadline_.load() < progress_deadline_.load()) progress_poller_.wake();
}

void Driver::progress_loop() {
  uint64_t drives_seen = 0;
  while (!is_ending_.load()) {
    const bool is_called = progress_called_.exchange(false);
    bool is_needed = false;
    Instant deadline;
    if (std::unique_lock<std::mutex> engine(engine_mutex_, std::try_to_lock); engine.owns_lock()) {
      const uint64_t drives = drives_.load();
      is_needed = is_called || drives == drives_seen;
      drives_seen = drives;
      // Waiters go first: what they wait for then needs no switch of threads.
      while (turn() && idle_waiters_.load() == 0) {
      }
      const Instant at = now();
      const Duration limit = port_.blocked_socket() ? kBlockedTick : kProgressTick;
      deadline = base::earlier(Instant::from_nanos(engine_deadline_.load()), at + limit);
      flush_deferred();
      engine.unlock();
      if (idle_waiters_.load() > 0) {
        wake_idle_waiters();
        is_needed = false;
      }
    }
    if (!is_needed) {
      sleep_lazily();
      continue;
    }
    progress_deadline_.store(deadline.nanos());
    const bool is_late = engine_deadline_.load() < deadline.nanos() || has_tasks_.load();
    if (!is_late && !is_ending_.load()) poll_in_progress(deadline - now());
    progress_deadline_.store(0);
  }
}

// Who cannot wait for sockets would ask them without end: everything fails instead, by name.
void Driver::poll_in_progress(Duration timeout) {
  const auto polled = progress_poller_.wait(timeout);
  if (polled) return;
  {
    const std::lock_guard<std::mutex> engine(engine_mutex_);
    if (!fatal_) on_socket_error(polled.error());
  }
  sleep_lazily();
}

void Driver::sleep_lazily() {
  std::unique_lock<std::mutex> lock(progress_mutex_);
  progress_is_lazy_.store(true);
  if (!progress_called_.load() && !has_tasks_.load() && !is_ending_.load()) {
    progress_wake_.wait_for(lock, to_chrono(kLazyTick));
  }
  progress_is_lazy_.store(false);
}

// --- The end ----------------------------------------------------------------------------------

void Driver::drain(Duration limit, std::optional<uint64_t> group) {
  const Instant until = now() + limit;
  while (now() < until) {
    bool is_drained = false;
    const Status status = run([&](collective::Engine& engine, Instant) {
      const transport::Endpoint& endpoint = engine.endpoint();
      is_drained = group ? endpoint.is_drained_of(*group) : endpoint.is_drained();
    });
    if (!status || is_drained) return;
    if (std::unique_lock<std::mutex> lock(engine_mutex_, std::try_to_lock); lock.owns_lock()) {
      turn();
      release_engine(lock);
    }
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

void Driver::shutdown(Duration drain_limit) {
  if (crypto::forked_child()) return;
  std::unique_lock<std::mutex> once(shutdown_mutex_, std::defer_lock);
  // A callback cannot wait for the shutdown that waits for it.
  if (!Completions::is_calling()) {
    once.lock();
  } else if (!once.try_lock()) {
    return;
  }
  if (is_ended_.load()) return;
  drain(drain_limit);
  for (int copy = 0; copy < transport::kGoodbyeCopies; ++copy) {
    (void)run([](collective::Engine& engine, Instant) { engine.endpoint().post_goodbye(); });
  }
  end_engine();
  end_threads();
}

void Driver::end_engine() {
  is_ending_.store(true);
  waiter_poller_.wake();
  const std::lock_guard<std::mutex> engine(engine_mutex_);
  if (!fatal_) (void)port_.transmit(engine_, now());  // the last goodbye, if it is still here
  {
    const std::lock_guard<std::mutex> lock(tasks_mutex_);
    tasks_are_closed_ = true;
  }
  while (has_tasks_.load()) take_tasks();
  fail_everything(ended_error());
  flush_deferred();
  engine_.endpoint().wipe();
  is_ended_.store(true);
  wake_idle_waiters();
}

void Driver::end_threads() {
  call_progress();
  progress_poller_.wake();
  progress_thread_->join();
  completions_.end();
}

}  // namespace securefabric::net
