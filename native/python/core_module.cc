// The module securefabric._core: the native rooms that need no torch. It lists the rooms and
// defines how their errors reach Python; what a room offers is in <room>_bindings.cc, and its
// Python types are in securefabric/_core.pyi.
#include "bindings.h"

namespace securefabric::python {
namespace {

namespace py = pybind11;

constexpr const char* kModuleName = "securefabric._core";

using Bind = void (*)(py::module_&);
constexpr Bind kRooms[] = {
    bind_crypto,
    bind_sim,
};

// A RuntimeError of our own: the package above translates `code` into its exception classes.
void bind_core_error(py::module_& module) {
  static constexpr const char* kName = "securefabric._core.CoreError";
  static constexpr const char* kDoc =
      "A recoverable failure that is no bad setting; `code` names its kind.";
  const auto type = py::reinterpret_steal<py::object>(
      PyErr_NewExceptionWithDoc(kName, kDoc, PyExc_RuntimeError, nullptr));
  if (!type) throw py::error_already_set();
  module.attr("CoreError") = type;
}

}  // namespace

void raise_core_error(const base::Error& error) {
  if (error.code == base::ErrorCode::kConfig) throw py::value_error(error.message);
  const py::object type = py::module_::import(kModuleName).attr("CoreError");
  const py::object instance = type(error.message);
  instance.attr("code") = base::error_code_name(error.code);
  PyErr_SetObject(type.ptr(), instance.ptr());
  throw py::error_already_set();
}

}  // namespace securefabric::python

PYBIND11_MODULE(_core, module) {
  using namespace securefabric::python;
  module.doc() = "The native core of securefabric that needs no torch.";
  bind_core_error(module);
  for (const Bind bind : kRooms) bind(module);
}
