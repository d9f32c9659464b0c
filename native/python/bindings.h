// What the files of securefabric._core share: one bind function per room, and the border where a
// Result becomes an exception.
#pragma once

#include <pybind11/pybind11.h>

#include <utility>

#include "base/bytes.h"
#include "base/result.h"

namespace securefabric::python {

// Raises ValueError for kConfig (an unusable setting, key text or suite name), and
// securefabric._core.CoreError with `code` set to the error code's name for all else.
[[noreturn]] void raise_core_error(const base::Error& error);

template <typename T>
T unwrap(base::Result<T> result) {
  if (!result.ok()) raise_core_error(result.error());
  return std::move(result).value();
}

// A view of a Python `bytes`, valid while that object lives.
inline base::Bytes view_of(const pybind11::bytes& bytes) {
  const std::string_view text(bytes);
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}
// A view of a Python `bytearray`, valid until it is resized; only while holding the GIL.
inline base::MutableBytes view_of(pybind11::bytearray& bytes) {
  return {reinterpret_cast<uint8_t*>(PyByteArray_AS_STRING(bytes.ptr())), bytes.size()};
}
inline pybind11::bytes to_python(base::Bytes bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// One per room, in <room>_bindings.cc; core_module.cc calls them.
void bind_crypto(pybind11::module_& module);
void bind_sim(pybind11::module_& module);

}  // namespace securefabric::python
