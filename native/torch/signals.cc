#include "torch/signals.h"

#include <pybind11/pybind11.h>

namespace securefabric::torch_room {

namespace {

// Constant from the first call on, which is learn_main_thread's.
unsigned long main_thread() {  // NOLINT(google-runtime-int): Python's type
  static const auto ident = pybind11::module_::import("threading")
                                .attr("main_thread")()
                                .attr("ident")
                                .cast<unsigned long>();
  return ident;
}

}  // namespace

void learn_main_thread() {
  (void)main_thread();
}

bool runs_signal_handlers() {
  return Py_IsInitialized() != 0 && PyThread_get_thread_ident() == main_thread();
}

void run_signal_handlers() {
  const pybind11::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
}

}  // namespace securefabric::torch_room
