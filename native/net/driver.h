// Runs an engine on sockets: who drives it, when, and who is told when an operation is done.
//
// Whoever waits drives. A thread inside wait() takes the engine and runs turns until its operation
// is done: small collectives then cost no thread switch. Two threads of our own do the rest:
//
//   progress    drives while nobody waits. It sleeps in epoll on the sockets without holding the
//               engine; when it finds that somebody else drives, it steps back ("lazy") and only
//               looks every few milliseconds whether it is needed again. So a loop of synchronous
//               collectives never wakes it.
//   completion  calls Operation::on_done of operations that nobody is waiting for, because futures
//               run Python callbacks there. on_done of a waited-for operation is called by the
//               thread that waits.
//
// A turn: take submitted work, receive, timers, send, publish what is done.
//
// Locks: `engine_mutex_` is held by whoever drives, also while it sleeps in wait(). Everybody else
// appends to `tasks_` (`tasks_mutex_`) and, if it sleeps, wakes the one who drives. No lock is held
// while on_done or anything of the caller's runs. Lock order: engine_mutex_, then tasks_mutex_;
// engine_mutex_, then completion_mutex_.
//
// After fork() every entry refuses and sends nothing: a child that sends would reuse nonces.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/result.h"
#include "base/time.h"
#include "collective/engine.h"
#include "net/poller.h"
#include "net/socket_port.h"

namespace securefabric::net {

struct DriverOptions {
  // How long a waiting thread polls without sleeping after the last sign of life. Zero where ranks
  // are much more numerous than cores.
  base::Duration spin = base::Duration::micros(100);
  // Between two polls of a spin the core is offered to others.
  bool yields_while_spinning = true;
};

class Driver {
 public:
  using EngineTask = std::function<void(collective::Engine&, base::Instant)>;
  // Called on whichever thread drives, with the engine held: must return at once and not call back.
  using WantedHandler = std::function<void(base::Rank)>;

  static base::Result<std::unique_ptr<Driver>> make(transport::EndpointConfig config,
                                                    std::vector<UdpSocket> sockets,
                                                    DriverOptions options, WantedHandler wanted);
  ~Driver();
  Driver(const Driver&) = delete;
  Driver& operator=(const Driver&) = delete;

  // Any thread. Starts the operation, on this thread if the engine is free. Operations of a group
  // start in the order of the calls. kAborted after shutdown, kConfig in a forked child.
  base::Status submit(const std::shared_ptr<collective::Operation>& operation);

  // Any thread. Drives until the operation is done or `until` has passed; true when it is done.
  // The caller's on_done has then been called, by this thread or another.
  bool wait(const std::shared_ptr<collective::Operation>& operation, base::Instant until);

  // Any thread. Runs `task` with the engine held, on this thread or on the one that drives, and
  // returns when it has run.
  base::Status run(EngineTask task);
  // The same without waiting.
  base::Status post(EngineTask task);

  // Any thread. Waits until everything that was sent has arrived, or until `limit` has passed.
  void drain(base::Duration limit);

  // Any thread, idempotent. Lets what was sent arrive, for at most `drain_limit`, says goodbye to
  // the peers and ends the threads. Operations that still run fail.
  void shutdown(base::Duration drain_limit);
  const SocketPort& port() const { return port_; }

 private:
  Driver(transport::EndpointConfig config, std::vector<UdpSocket> sockets, DriverOptions options,
         WantedHandler wanted, Poller waiter_poller, Poller progress_poller);

  base::Status refuse_if_unusable() const;
  base::Status watch_sockets();
  void start_threads();

  // While holding engine_mutex_:
  bool turn();
  void take_tasks();
  void publish();
  void fail_everything(const base::Error& error);
  void drive_until_done(const collective::Operation& operation, base::Instant until);
  void sleep_in_wait(base::Instant until);

  // Gives the engine back and makes sure that somebody looks after it.
  void release_engine(std::unique_lock<std::mutex>& lock);
  // Runs what others have appended if the engine is free; otherwise wakes its holder.
  void serve_tasks();
  void append(EngineTask task);
  void notify(const std::shared_ptr<collective::Operation>& operation);
  // Makes the progress thread look after the engine as soon as its deadlines ask for it.
  void call_progress();

  void progress_loop();
  void completion_loop();

  const DriverOptions options_;
  const WantedHandler wanted_;
  collective::Engine engine_;   // guarded by engine_mutex_
  SocketPort port_;             // guarded by engine_mutex_
  Poller waiter_poller_;        // of the thread in wait(); guarded by engine_mutex_ but for wake()
  Poller progress_poller_;      // of the progress thread but for wake()

  std::mutex engine_mutex_;     // held by whoever drives
  std::condition_variable engine_free_;  // for waiters that do not drive; with waiters_mutex_
  std::mutex waiters_mutex_;    // only for engine_free_
  std::atomic<int> idle_waiters_{0};     // threads in engine_free_
  std::atomic<bool> waiter_sleeps_{false};   // the driving waiter is in epoll, or about to be

  std::mutex tasks_mutex_;
  std::deque<EngineTask> tasks_;         // guarded by tasks_mutex_
  std::atomic<bool> has_tasks_{false};   // tasks_ is not empty

  std::mutex progress_mutex_;                // only for progress_wake_
  std::condition_variable progress_wake_;    // ends the progress thread's lazy sleep
  bool progress_called_ = false;             // guarded by progress_mutex_: take over now
  std::atomic<bool> progress_is_lazy_{false};     // it is not watching the sockets
  std::atomic<int64_t> progress_deadline_{0};     // nanos: when it wakes by itself, if not lazy
  std::atomic<int64_t> engine_deadline_{0};       // nanos: of the engine, after the last turn
  std::atomic<uint64_t> drives_{0};          // times a waiter took the engine

  std::mutex completion_mutex_;
  std::condition_variable completion_wake_;
  std::deque<std::shared_ptr<collective::Operation>> completions_;  // guarded by completion_mutex_
  // Done, synchronous and not yet waited for; guarded by engine_mutex_.
  std::vector<std::shared_ptr<collective::Operation>> deferred_;

  std::atomic<bool> is_ended_{false};        // the threads are gone
  std::mutex shutdown_mutex_;                // one shutdown at a time
  std::unique_ptr<std::thread> progress_thread_;
  std::unique_ptr<std::thread> completion_thread_;
};

}  // namespace securefabric::net
