// Runs an engine on sockets: who drives it, when, and who is told when an operation is done.
//
// Whoever waits drives. A thread inside wait() takes the engine and runs turns until its operation
// is done: small collectives then cost no thread switch. Two threads of our own do the rest:
//
//   progress    drives while nobody waits. It sleeps in epoll on the sockets without holding the
//               engine; when it finds that somebody else drives, it steps back ("lazy") and only
//               looks every few milliseconds whether it is needed again. So a loop of synchronous
//               collectives never wakes it. Asynchronous ones call it (call_progress).
//   completion  calls Operation::on_done of operations that nobody is waiting for, because futures
//               run Python callbacks there (completions.h). on_done of a waited-for operation is
//               called by the thread that waits.
//
// A turn: take submitted work, receive, timers, publish what is broken, send, publish what is done.
//
// Locks: `engine_mutex_` is held by whoever drives, also while it sleeps in wait(). Everybody else
// appends to `tasks_` (`tasks_mutex_`) and, if it sleeps, wakes the one who drives. No lock is held
// while on_done or anything of the caller's runs. Lock order: engine_mutex_ before any other; of
// the others never two at once. It is only ever tried while another is held. Drivers of one rank
// share no lock; one that drives reaches the other by hand_in() alone, which takes no engine.
//
// Nobody is forgotten, because each side writes its flag before it looks at the other's (all flags
// are sequentially consistent), and whoever comes second acts:
//
//   append a task, then try the engine      | let go of the engine, then look for tasks
//   append a task, then look for a sleeper  | say "I sleep", then look for tasks
//   say "I stand by", then try the engine   | let go of the engine, then wake who stands by
//   set the engine's deadline, then look    | say until when it sleeps, then look at the engine's
//     at the progress thread's              |   deadline
//   call the progress thread, then look     | say "I am lazy", then look whether it was called
//     whether it is lazy                    |
//
// Waiters that stand by and leave without having driven pass the engine on (hand_over). The ticks
// in driver.cc bound what a mistake in this, or an operation nobody waits for, could cost.
//
// The end: is_ending_ (holders let go; whoever comes is refused or stands by), then, under the
// engine's lock, the last tasks run and everything fails, then is_ended_.
//
// After fork() every entry refuses and sends nothing: a child that sends would reuse nonces.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "base/result.h"
#include "base/time.h"
#include "collective/engine.h"
#include "net/completions.h"
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
  // Runs with the engine held: must not call the driver.
  using EngineTask = std::function<void(collective::Engine&, base::Instant)>;
  // Both are called on whichever thread drives, with the engine held: they must return at once and
  // not call back. BrokenHandler comes before the ends of the operations that the group had, and
  // before anything of it is sent.
  using WantedHandler = std::function<void(const transport::PeerWanted&)>;
  using BrokenHandler = std::function<void(const collective::GroupBroken&)>;

  static base::Result<std::unique_ptr<Driver>> make(transport::EndpointConfig config,
                                                    std::vector<UdpSocket> sockets,
                                                    DriverOptions options, WantedHandler wanted,
                                                    BrokenHandler broken = nullptr);
  ~Driver();
  Driver(const Driver&) = delete;
  Driver& operator=(const Driver&) = delete;

  // Any thread. Starts the operation, on this thread if the engine is free. Operations of a group
  // start in the order of the calls. kAborted after shutdown, kConfig in a forked child.
  base::Status submit(const std::shared_ptr<collective::Operation>& operation);

  // The same for a caller that has other things to do: the driver's own thread starts it.
  base::Status delegate(const std::shared_ptr<collective::Operation>& operation);

  // Any thread. Drives until the operation is done or `until` has passed; true when it is done.
  // on_done has then been called by this thread, unless another thread took that over and may
  // still be in it. Also false when the driver ends and the operation was never submitted.
  bool wait(const std::shared_ptr<collective::Operation>& operation, base::Instant until);

  // Any thread. Runs `task` with the engine held, on this thread or on the one that drives, and
  // returns when it has run. The same errors as submit().
  base::Status run(const EngineTask& task);
  // The same without waiting.
  base::Status post(EngineTask task);
  // The same from a thread that may hold the engine of another driver: leaves the task to whoever
  // drives, and touches no engine. Nothing happens when the driver has ended.
  void hand_in(EngineTask task);

  // Any thread. Waits until everything that was sent has arrived, or all of one group (its wire
  // id), or until `limit` has passed.
  void drain(base::Duration limit, std::optional<uint64_t> group = std::nullopt);

  // Any thread, idempotent; nothing in a forked child. Lets what was sent arrive, for at most
  // `drain_limit`, says goodbye to the peers and ends the threads. Operations that still run fail,
  // and every on_done that no waiter has taken over has been called when this returns. on_done
  // itself may call this; it then waits neither for other callbacks nor for another shutdown.
  void shutdown(base::Duration drain_limit);
  // Draining is over: nobody has a use for peers that are found from now on.
  bool is_ending() const { return is_ending_.load(); }
  const SocketPort& port() const { return port_; }

 private:
  Driver(transport::EndpointConfig config, std::vector<UdpSocket> sockets, DriverOptions options,
         WantedHandler wanted, BrokenHandler broken, Poller waiter_poller, Poller progress_poller);

  base::Status refuse_if_unusable() const;
  base::Status watch_sockets();
  void start_threads();

  // While holding engine_mutex_:
  bool turn();
  void start_tasks();
  void take_tasks();
  void publish_breaks();
  void publish();
  void note_state();
  void on_socket_error(const base::Error& error);
  void fail_everything(const base::Error& error);
  void flush_deferred();
  void drive_until_done(const collective::Operation& operation, base::Instant until);
  void sleep_in_wait(base::Instant until);

  // Waits until the engine may be free or the operation done, for at most `limit`. May take the
  // engine at once.
  void stand_by(const collective::Operation& operation, std::unique_lock<std::mutex>& engine,
                base::Duration limit);
  // Gives the engine back and makes sure that somebody looks after it.
  void release_engine(std::unique_lock<std::mutex>& lock);
  // Without the engine: whoever stands by drives from here on, or else the progress thread.
  void hand_over();
  void wake_idle_waiters();
  // Runs what others have appended if the engine is free; otherwise wakes its holder.
  void serve_tasks();
  // False when the driver has ended: nobody would run the task.
  bool append(EngineTask task);
  // Whoever drives, or else the progress thread, takes what was appended.
  void call_driver();
  // Makes the progress thread drive: operations run, and nobody may be waiting for them.
  void call_progress();
  // Makes sure that the progress thread does not sleep longer than the engine's deadline.
  void remind_progress();

  void progress_loop();
  void poll_in_progress(base::Duration timeout);
  void sleep_lazily();
  void end_engine();
  void end_threads();

  const DriverOptions options_;
  const WantedHandler wanted_;
  const BrokenHandler broken_;
  collective::Engine engine_;  // guarded by engine_mutex_
  SocketPort port_;            // guarded by engine_mutex_
  Poller waiter_poller_;       // of the thread in wait(); guarded by engine_mutex_ but for wake()
  Poller progress_poller_;     // of the progress thread but for wake() and on_socket_error()

  std::mutex engine_mutex_;  // held by whoever drives
  // What made a socket useless; from then on everything fails with it. Guarded by engine_mutex_.
  std::optional<base::Error> fatal_;
  std::mutex waiters_mutex_;                // for the next two and the flags of run()
  std::condition_variable engine_free_;     // for waiters that do not drive
  std::condition_variable task_ran_;        // for run()
  std::atomic<int> idle_waiters_{0};        // threads in stand_by
  std::atomic<bool> waiter_sleeps_{false};  // the driving waiter is in epoll, or about to be

  std::mutex tasks_mutex_;
  std::deque<EngineTask> tasks_;        // guarded by tasks_mutex_
  bool tasks_are_closed_ = false;       // nobody will run another one; guarded by tasks_mutex_
  std::atomic<bool> has_tasks_{false};  // tasks_ is not empty

  std::mutex progress_mutex_;                  // only for progress_wake_
  std::condition_variable progress_wake_;      // ends the progress thread's lazy sleep
  std::atomic<bool> progress_called_{false};   // it has to drive when it next looks
  std::atomic<bool> progress_is_lazy_{false};  // it is not watching the sockets
  std::atomic<int64_t> progress_deadline_{0};  // nanos: when it wakes by itself; 0 unless in epoll
  std::atomic<int64_t> engine_deadline_{0};    // nanos: of the engine, after the last turn
  std::atomic<bool> has_work_{false};          // operations run, after the last turn
  std::atomic<uint64_t> drives_{0};            // times a waiter took the engine

  Completions completions_;
  // Done, synchronous and not yet waited for; guarded by engine_mutex_.
  std::vector<std::shared_ptr<collective::Operation>> deferred_;

  std::atomic<bool> is_ending_{false};  // everybody lets go of the engine
  std::atomic<bool> is_ended_{false};   // every operation is done; no task will run
  std::mutex shutdown_mutex_;           // one shutdown at a time
  std::unique_ptr<std::thread> progress_thread_;
};

}  // namespace securefabric::net
