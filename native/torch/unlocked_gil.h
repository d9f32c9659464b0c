// Gives up the GIL where a destructor must wait for threads that may need it.
#pragma once

#include <Python.h>

namespace securefabric::torch_room {

// Without effect on a thread that does not hold the GIL, and once the interpreter is gone.
class UnlockedGil {
 public:
  UnlockedGil()
      : saved_(Py_IsInitialized() != 0 && PyGILState_Check() != 0 ? PyEval_SaveThread() : nullptr) {
  }
  ~UnlockedGil() {
    if (saved_ != nullptr) PyEval_RestoreThread(saved_);
  }
  UnlockedGil(const UnlockedGil&) = delete;
  UnlockedGil& operator=(const UnlockedGil&) = delete;

 private:
  PyThreadState* saved_;  // null when there was nothing to give up
};

}  // namespace securefabric::torch_room
