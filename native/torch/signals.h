// Lets Ctrl-C, and whatever else Python handles as a signal, end the wait for a collective.
//
// Python runs its handlers on its main thread, between two instructions; a thread that waits in
// here executes none. So it comes up for a look every kSignalTick, and takes the GIL for that.
#pragma once

#include "base/time.h"

namespace securefabric::torch_room {

// Short for a person, and so long that nobody notices what a look costs.
inline constexpr base::Duration kSignalTick = base::Duration::millis(200);

// When the module is made, with the GIL: remembers which thread is Python's main thread.
void learn_main_thread();

// Whether this thread is the one on which handlers run.
bool runs_signal_handlers();

// Runs the handlers of signals that have come. Throws pybind11::error_already_set when one of them
// raises, as that of SIGINT does. Without the GIL held, or with it; on that thread only.
void run_signal_handlers();

}  // namespace securefabric::torch_room
