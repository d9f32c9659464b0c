// The threads that call Operation::on_done of operations nobody waits for.
//
// Callbacks run in the order of the operations' ends, one after the other. One that does not come
// back for a while is waiting for something, and that may be the callback of a later operation (a
// future's callback may wait for another future): then a thread that stands by goes on with the
// next one. So no callback can keep another from running, and as many threads live as callbacks
// wait, and one or two more.
#pragma once

#include <memory>

#include "base/time.h"
#include "collective/operation.h"

namespace securefabric::net {

// Calls on_done, unless somebody else has, and lets go of what it holds: it may own the operation.
void call_back(collective::Operation& operation);

class Completions {
 public:
  // How long the others wait for a callback before they overtake it.
  static constexpr base::Duration kPatience = base::Duration::micros(500);

  explicit Completions(base::Duration patience = kPatience);
  // Ends.
  ~Completions();
  Completions(const Completions&) = delete;
  Completions& operator=(const Completions&) = delete;

  // Any thread, until end(). Never blocks for long and calls nothing back itself.
  void push(std::shared_ptr<collective::Operation> operation);
  // Any thread, any number of times. Waits until all that was pushed has been called back; a
  // callback that calls this, of whichever Completions, does not wait.
  void end();
  // Whether the caller is a callback, of this or of another one: two that end each other's from
  // their callbacks must not wait for each other.
  static bool is_calling();

 private:
  struct State;
  static void start_thread(const std::shared_ptr<State>& state);
  static void serve(const std::shared_ptr<State>& state);

  const std::shared_ptr<State> state_;  // of the threads too: a callback may destroy us
};

}  // namespace securefabric::net
