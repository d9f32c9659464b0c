// What a c10d store puts before its keys.
#pragma once

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include <string>

namespace securefabric::torch_room {

// All prefixes of nested prefix stores, as they stand before a key: that of the innermost store
// first. Empty for any other store. Programs tell groups apart by it.
std::string prefix_of(const c10::intrusive_ptr<c10d::Store>& store);

}  // namespace securefabric::torch_room
