// The encrypted store's face towards torch: a c10d::Store that forwards to a client in Python
// (securefabric/store/client.py), which speaks CURVE over pyzmq.
//
// Written in C++ because torch's trampoline for stores in Python forwards neither queues,
// list_keys, set_timeout nor barrier, and because callers come from C++ threads (the backend, DDP's
// logger, watchdogs) at any time, also while the interpreter ends: such a call must fail, not touch
// Python.
//
// Any thread may call, with or without the GIL; calls of several threads run at once, as the client
// gives each a connection of its own. No lock of a caller may be needed by who holds the GIL.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <torch/csrc/distributed/c10d/Store.hpp>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "torch/versions.h"

namespace securefabric::torch_room {

// Stands between the stores of a process and its end: closed before the interpreter ends, so that
// no thread asks for the GIL when that would stop it for good.
struct StoreGate {
  std::atomic<bool> is_closed{false};  // set once
  std::atomic<int> calls_inside{0};    // threads that use, or wait for, the GIL on a store's behalf
};

class Store : public c10d::Store {
 public:
  using Key = std::string;
  using Value = std::vector<uint8_t>;
  using Timeout = std::chrono::milliseconds;

  // With the GIL. `client` is a securefabric.store.client.Client; it lives as long as this store.
  Store(pybind11::object client, std::shared_ptr<StoreGate> gate, std::string host, uint16_t port,
        Timeout timeout);
  ~Store() override;
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  c10::intrusive_ptr<c10d::Store> clone() override;
  void set(const Key& key, const Value& value) override;
  Value compareSet(const Key& key, const Value& current, const Value& desired) override;
  Value get(const Key& key) override;
  int64_t add(const Key& key, int64_t value) override;
  bool deleteKey(const Key& key) override;
  bool check(const std::vector<Key>& keys) override;
  int64_t getNumKeys() override;
  void wait(const std::vector<Key>& keys) override;
  void wait(const std::vector<Key>& keys, const Timeout& timeout) override;
  void append(const Key& key, const Value& value) override;
  std::vector<Value> multiGet(const std::vector<Key>& keys) override;
  void multiSet(const std::vector<Key>& keys, const std::vector<Value>& values) override;
  bool hasExtendedApi() const override { return true; }
  void queuePush(const Key& key, const Value& value) override;
  Value queuePop(const Key& key, bool block) override;
  int64_t queueLen(const Key& key) override;
  std::vector<Key> listKeys() override;
#if SF_TORCH_SINCE(12)
  void barrier(const Key& key, int64_t world_size, const Timeout& timeout) override;
#endif

  const std::string& host() const { return host_; }
  uint16_t port() const { return port_; }
  // The Python client; with the GIL.
  const pybind11::object& client() const { return client_; }

 private:
  struct Answer {
    int64_t number = 0;        // of the reply
    std::vector<Value> items;  // of the reply
  };

  // One call of the client: DistStoreError when the time is over, DistNetworkError when the server
  // is gone, DistQueueEmptyError, or what Python raised when it is none of these
  // (KeyboardInterrupt).
  Answer call(const char* operation, Timeout timeout, int64_t number,
              const std::vector<Value>& items);

  pybind11::object client_;          // touched only with the GIL
  std::shared_ptr<StoreGate> gate_;  // of the process
  std::string host_;  // as the user named it; for people, and to see whether it is loopback
  uint16_t port_;     // of the server
};

// Store and StoreGate in the module; c10d's own bindings serve its methods.
void bind_store(pybind11::module_& module);

}  // namespace securefabric::torch_room
