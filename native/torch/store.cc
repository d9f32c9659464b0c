#include "torch/store.h"

#include <c10/util/Exception.h>
#include <pybind11/chrono.h>
#include <pybind11/stl.h>

#include <string_view>
#include <tuple>
#include <utility>

namespace securefabric::torch_room {

namespace py = pybind11;

namespace {

// What the client's call() returns first; client.py has the same numbers.
enum class Status { kOk = 0, kTimeout = 1, kEmpty = 2, kNetwork = 3, kStore = 4 };

Store::Value bytes_of(std::string_view text) {
  return {text.begin(), text.end()};
}

std::vector<Store::Value> all_bytes_of(const std::vector<Store::Key>& keys) {
  std::vector<Store::Value> items;
  items.reserve(keys.size());
  for (const Store::Key& key : keys) items.push_back(bytes_of(key));
  return items;
}

std::string text_of(const Store::Value& bytes) {
  return {bytes.begin(), bytes.end()};
}

// Past this point nobody may ask for the GIL: the asking thread would be stopped for good.
bool is_interpreter_ending() {
  if (Py_IsInitialized() == 0) return true;
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing() != 0;
#else
  return _Py_IsFinalizing() != 0;
#endif
}

[[noreturn]] void throw_failure(Status status, const std::string& message) {
  switch (status) {
    case Status::kEmpty: C10_THROW_ERROR(DistQueueEmptyError, message);
    case Status::kNetwork: C10_THROW_ERROR(DistNetworkError, message);
    default: C10_THROW_ERROR(DistStoreError, message);
  }
}

// A call on its way through the gate; throws where that is closed.
class Inside {
 public:
  explicit Inside(std::shared_ptr<StoreGate> gate) : gate_(std::move(gate)) {
    ++gate_->calls_inside;  // first, so that who closes the gate sees either this or a refusal
    if (!gate_->is_closed && !is_interpreter_ending()) return;
    --gate_->calls_inside;
    throw_failure(
        Status::kNetwork,
        "StoreUnavailable: this process has closed its store, because it is about to end");
  }
  ~Inside() { --gate_->calls_inside; }
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;

 private:
  std::shared_ptr<StoreGate> gate_;  // outlives the store, should that end meanwhile
};

}  // namespace

Store::Store(py::object client, std::shared_ptr<StoreGate> gate, std::string host, uint16_t port,
             Timeout timeout)
    : c10d::Store(timeout),
      client_(std::move(client)),
      gate_(std::move(gate)),
      host_(std::move(host)),
      port_(port) {}

Store::~Store() {
  if (is_interpreter_ending()) {
    client_.release();  // leaked: Python frees nothing any more
    return;
  }
  const py::gil_scoped_acquire locked;
  client_ = py::object();
}

Store::Answer Store::call(const char* operation, Timeout timeout, int64_t number,
                          const std::vector<Value>& items) {
  const Inside inside(gate_);
  const py::gil_scoped_acquire locked;
  py::list arguments;
  for (const Value& item : items) {
    arguments.append(py::bytes(reinterpret_cast<const char*>(item.data()), item.size()));
  }
  const auto reply = client_.attr("call")(operation, timeout.count(), number, arguments)
                         .cast<std::tuple<int, int64_t, std::vector<py::bytes>>>();
  Answer answer{std::get<1>(reply), {}};
  for (const py::bytes& item : std::get<2>(reply)) {
    answer.items.push_back(bytes_of(std::string_view(item)));
  }
  const auto status = static_cast<Status>(std::get<0>(reply));
  if (status != Status::kOk) {
    throw_failure(status, answer.items.empty() ? "" : text_of(answer.items.front()));
  }
  return answer;
}

c10::intrusive_ptr<c10d::Store> Store::clone() {
  const Inside inside(gate_);
  const py::gil_scoped_acquire locked;
  // Without the server, if the client has one: that ends with the store that started it.
  return c10::make_intrusive<Store>(client_.attr("share")(), gate_, host_, port_, timeout_);
}

void Store::set(const Key& key, const Value& value) {
  call("set", timeout_, 0, {bytes_of(key), value});
}

Store::Value Store::compareSet(const Key& key, const Value& current, const Value& desired) {
  return call("compare_set", timeout_, 0, {bytes_of(key), current, desired}).items.at(0);
}

Store::Value Store::get(const Key& key) {
  return call("get", timeout_, 0, {bytes_of(key)}).items.at(0);
}

int64_t Store::add(const Key& key, int64_t value) {
  return call("add", timeout_, value, {bytes_of(key)}).number;
}

bool Store::deleteKey(const Key& key) {
  return call("delete", timeout_, 0, {bytes_of(key)}).number != 0;
}

bool Store::check(const std::vector<Key>& keys) {
  return call("check", timeout_, 0, all_bytes_of(keys)).number != 0;
}

int64_t Store::getNumKeys() {
  return call("num_keys", timeout_, 0, {}).number;
}

void Store::wait(const std::vector<Key>& keys) {
  wait(keys, timeout_);
}

void Store::wait(const std::vector<Key>& keys, const Timeout& timeout) {
  call("wait", timeout, 0, all_bytes_of(keys));
}

void Store::append(const Key& key, const Value& value) {
  call("append", timeout_, 0, {bytes_of(key), value});
}

std::vector<Store::Value> Store::multiGet(const std::vector<Key>& keys) {
  return call("multi_get", timeout_, 0, all_bytes_of(keys)).items;
}

void Store::multiSet(const std::vector<Key>& keys, const std::vector<Value>& values) {
  if (keys.size() != values.size()) {
    throw_failure(Status::kStore, "multiSet keys and values vectors must be of same size");
  }
  std::vector<Value> pairs;
  pairs.reserve(2 * keys.size());
  for (size_t i = 0; i < keys.size(); ++i) {
    pairs.push_back(bytes_of(keys[i]));
    pairs.push_back(values[i]);
  }
  call("multi_set", timeout_, 0, pairs);
}

void Store::queuePush(const Key& key, const Value& value) {
  call("queue_push", timeout_, 0, {bytes_of(key), value});
}

Store::Value Store::queuePop(const Key& key, bool block) {
  return call("queue_pop", timeout_, block ? 1 : 0, {bytes_of(key)}).items.at(0);
}

int64_t Store::queueLen(const Key& key) {
  return call("queue_len", timeout_, 0, {bytes_of(key)}).number;
}

std::vector<Store::Key> Store::listKeys() {
  std::vector<Key> keys;
  for (const Value& key : call("list_keys", timeout_, 0, {}).items) keys.push_back(text_of(key));
  return keys;
}

#if SF_TORCH_SINCE(12)
void Store::barrier(const Key& key, int64_t world_size, const Timeout& timeout) {
  call("barrier", timeout, world_size, {bytes_of(key)});
}
#endif

void bind_store(py::module_& module) {
  py::class_<StoreGate, std::shared_ptr<StoreGate>>(module, "StoreGate")
      .def(py::init<>())
      .def("close", [](StoreGate& gate) { gate.is_closed = true; })
      .def_property_readonly("calls_inside",
                             [](const StoreGate& gate) { return gate.calls_inside.load(); });
  py::class_<Store, c10d::Store, c10::intrusive_ptr<Store>>(module, "Store")
      .def(py::init([](py::object client, std::shared_ptr<StoreGate> gate, std::string host,
                       uint16_t port, std::chrono::milliseconds timeout) {
             return c10::make_intrusive<Store>(std::move(client), std::move(gate), std::move(host),
                                               port, timeout);
           }),
           py::kw_only(), py::arg("client"), py::arg("gate"), py::arg("host"), py::arg("port"),
           py::arg("timeout"))
      .def_property_readonly("host", &Store::host)
      .def_property_readonly("port", &Store::port)
      .def_property_readonly("client", &Store::client);
}

}  // namespace securefabric::torch_room
