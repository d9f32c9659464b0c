#include "torch/work.h"

#include <ATen/core/grad_mode.h>
#include <ATen/core/ivalue.h>
#include <c10/core/StreamGuard.h>

#include <algorithm>

#include "crypto/secret.h"
#include "net/clock.h"
#include "torch/errors.h"
#include "torch/overwrite.h"
#include "torch/signals.h"

namespace securefabric::torch_room {

using base::Duration;
using base::Error;
using base::ErrorCode;
using base::Instant;

namespace {

// A future of a list of tensors. It knows the device whose streams its value may depend on.
c10::intrusive_ptr<c10::ivalue::Future> make_tensors_future(const std::vector<at::Tensor>& results,
                                                            bool has_lists = false) {
  std::vector<c10::Device> devices;
  if (!results.empty() && !results.front().is_cpu()) devices.push_back(results.front().device());
  c10::TypePtr type = c10::ListType::create(c10::TensorType::get());
  if (has_lists) type = c10::ListType::create(std::move(type));
  return c10::make_intrusive<c10::ivalue::Future>(std::move(type), std::move(devices));
}

Error forked_error() {
  return Error{ErrorCode::kForked,
               "this process was forked after init_process_group; its copy of the keys is gone. "
               "Start it with multiprocessing's 'spawn' or 'forkserver'"};
}

}  // namespace

std::chrono::milliseconds bounded(std::chrono::milliseconds timeout) {
  constexpr std::chrono::milliseconds kLongest(Duration::forever().millis());
  return timeout < -kLongest ? kLongest : std::min(timeout, kLongest);
}

Instant deadline_after(std::chrono::milliseconds timeout) {
  return net::now() + Duration::millis(bounded(timeout).count());
}

// --- The end of a work -------------------------------------------------------------------------

void WorkLedger::on_end(const c10d::WorkInfo& info) {
  if (hook_) hook_(std::make_shared<c10d::WorkInfo>(info));
  if (pending_.fetch_sub(1) > 1) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  none_pending_.notify_all();
}

void WorkLedger::wait_for_all() {
  std::unique_lock<std::mutex> lock(mutex_);
  none_pending_.wait(lock, [this] { return pending_.load() == 0; });
}

void close_and_wait(Phase& phase, Instant until) {
  struct End {
    std::mutex mutex;
    std::condition_variable changed;
    bool has_come = false;  // guarded by mutex
  };
  auto end = std::make_shared<End>();  // a collective may end after the wait
  const auto announce = [end] {
    const std::lock_guard<std::mutex> lock(end->mutex);
    end->has_come = true;
    end->changed.notify_all();
  };
  if (phase.close(announce)) return;
  std::unique_lock<std::mutex> lock(end->mutex);
  end->changed.wait_for(lock, std::chrono::nanoseconds((until - net::now()).nanos()),
                        [&] { return end->has_come; });
}

EndingWork::EndingWork(int rank, Facts facts)
    : c10d::Work(rank, facts.type, facts.title.empty() ? nullptr : facts.title.c_str(),
                 std::make_optional(facts.profiled)),
      facts_(std::move(facts)),
      started_at_(net::now()) {
  if (facts_.ledger) facts_.ledger->on_begin();
  if (facts_.phase) facts_.phase->on_begin();
}

void EndingWork::end(const std::exception_ptr& failure, bool has_timed_out) {
  c10::intrusive_ptr<c10::ivalue::Future> future;
  c10::intrusive_ptr<c10::ivalue::Future> future_result;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    finished_at_ = net::now();
    has_timed_out_ = has_timed_out;
    futures_taken_ = true;
    future = future_;
    future_result = future_result_;
  }
  finish(failure);
  if (facts_.phase) facts_.phase->on_end(failure ? std::nullopt : result_stream());
  // Callbacks run from here on; a waiter that saw finish() need not wait for them.
  if (future) settle(*future);
  if (future_result) future_result->markCompleted(result_value());
  if (!facts_.ledger) return;
  using std::chrono::nanoseconds;
  using TimePoint = decltype(c10d::WorkInfo::timeStarted);
  facts_.ledger->on_end({facts_.type, facts_.sequence, TimePoint(nanoseconds(started_at_.nanos())),
                         TimePoint(nanoseconds(finished_at_.nanos())),
                         nanoseconds((finished_at_ - started_at_).nanos())});
}

void EndingWork::await_end() {
  std::unique_lock<std::mutex> lock(mutex_);
  cv_.wait(lock, [this] { return completed_; });
}

void EndingWork::rethrow_failure() const {
  if (const auto failure = exception()) std::rethrow_exception(failure);
}

void EndingWork::settle(c10::ivalue::Future& future) const {
  if (const auto failure = exception()) {
    future.setError(failure);
  } else {
    // The future remembers the current stream as the one after which the tensors are there.
    const c10::OptionalStreamGuard guard(result_stream());
    future.markCompleted(future_value());
  }
}

c10::IValue EndingWork::future_value() const {
  const size_t length = facts_.results_per_list;
  if (length == 0) return facts_.results;
  std::vector<std::vector<at::Tensor>> lists;
  for (size_t i = 0; i < facts_.results.size(); ++i) {
    if (i % length == 0) lists.emplace_back();
    lists.back().push_back(facts_.results[i]);
  }
  return lists;
}

bool EndingWork::isCompleted() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return completed_;
}

bool EndingWork::isSuccess() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return completed_ && !exception_;
}

std::exception_ptr EndingWork::exception() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return exception_;
}

c10::intrusive_ptr<c10::ivalue::Future> EndingWork::getFuture() {
  std::unique_lock<std::mutex> lock(mutex_);
  if (future_) return future_;
  future_ = make_tensors_future(facts_.results, facts_.results_per_list > 0);
  const auto future = future_;
  if (!futures_taken_) return future;
  // end() did not see it any more, so it is settled here.
  cv_.wait(lock, [this] { return completed_; });
  lock.unlock();
  settle(*future);
  return future;
}

c10::intrusive_ptr<c10::ivalue::Future> EndingWork::getFutureResult() {
  std::unique_lock<std::mutex> lock(mutex_);
  if (future_result_) return future_result_;
  future_result_ = c10::make_intrusive<c10::ivalue::Future>(c10::IntType::get());
  const auto future = future_result_;
  if (!futures_taken_) return future;
  cv_.wait(lock, [this] { return completed_; });
  lock.unlock();
  future->markCompleted(result_value());
  return future;
}

c10::IValue EndingWork::result_value() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto result = !exception_      ? c10d::WorkResult::SUCCESS
                      : has_timed_out_ ? c10d::WorkResult::TIMEOUT
                                       : c10d::WorkResult::COMM_ERROR;
  return static_cast<int64_t>(result);
}

float EndingWork::getDuration() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  TORCH_CHECK(completed_, "getDuration: the work is not complete");
  return static_cast<float>((finished_at_ - started_at_).seconds() * 1e3);
}

// --- A work of operations ----------------------------------------------------------------------

Work::Work(int rank, Facts facts, Call call)
    : EndingWork(rank, std::move(facts)), call_(std::move(call)) {}

void Work::own(std::vector<std::shared_ptr<collective::Operation>> operations) {
  operations_ = std::move(operations);
  operations_left_.store(operations_.size());
  if (operations_.size() == call_.parts.size()) return;
  stripes_left_ = std::make_unique<std::atomic<uint32_t>[]>(call_.parts.size());
  for (size_t i = 0; i < call_.parts.size(); ++i) stripes_left_[i].store(call_.parts[i].stripes);
}

bool Work::is_staged() const {
  return std::any_of(call_.parts.begin(), call_.parts.end(),
                     [](const Call::Part& part) { return part.table.is_staged(); });
}

bool Work::has_arrived_by(Instant until) const {
  try {
    return std::all_of(call_.parts.begin(), call_.parts.end(),
                       [until](const Call::Part& part) { return part.table.has_inputs_by(until); });
  } catch (const std::exception&) {
    return false;  // submit() meets the device's failure again, and tells the other ranks
  }
}

void Work::submit() {
  if (operations_.empty()) return complete();
  size_t first = 0;  // operation of the part
  for (size_t part = 0; part < call_.parts.size(); ++part) {
    try {
      call_.parts[part].table.await_inputs();
    } catch (const std::exception& failure) {
      // Other ranks will start what this one cannot.
      const Error error{ErrorCode::kSystem, std::string("a device failed: ") + failure.what()};
      give_up(error);
      for (; first < operations_.size(); ++first) on_failure(error);
      return;
    }
    // That of the first engine last: this thread starts it itself, while the others begin.
    const size_t stripes = call_.parts[part].stripes;
    for (size_t i = stripes; i-- > 0;) start_operation(first + i, part);
    first += stripes;
  }
}

void Work::start_operation(size_t index, size_t part) {
  const auto& operation = operations_[index];
  const uint32_t engine = operation->group().engine;
  net::Driver& driver = call_.context->fabric->driver(engine);
  operation->on_done = [self = c10::intrusive_ptr<Work>::unsafe_reclaim_from_nonowning(this), index,
                        part] { self->on_operation_done(index, part); };
  const base::Status status = engine == 0 ? driver.submit(operation) : driver.delegate(operation);
  if (status) return;
  operation->on_done = nullptr;
  on_failure(status.error());
}

// What is copied back is that of the whole part.
bool Work::is_last_of(size_t part) {
  return !stripes_left_ || stripes_left_[part].fetch_sub(1) == 1;
}

// Of one operation, on whichever thread has finished it, holding no lock: while the others run.
void Work::on_operation_done(size_t index, size_t part) {
  const collective::Operation& operation = *operations_[index];
  if (operation.error) return on_failure(*operation.error);
  try {
    if (is_last_of(part)) call_.parts[part].table.finish();
  } catch (const std::exception& failure) {
    return on_failure(Error{ErrorCode::kSystem, failure.what()});
  }
  if (operations_left_.fetch_sub(1) == 1) complete();
}

void Work::on_failure(const Error& error) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!error_) error_ = error;
  }
  if (operations_left_.fetch_sub(1) == 1) complete();
}

// The thread that finished the last operation, holding no lock.
void Work::complete() {
  if (error_) return end(make_exception(*error_), error_->code == ErrorCode::kTimeout);
  std::exception_ptr failure;
  try {
    const c10::OptionalStreamGuard guard(call_.copies_back.empty() ? std::nullopt
                                                                   : result_stream());
    for (const CopyBack& copy : call_.copies_back) overwrite(copy.to, copy.from);
  } catch (const std::exception&) {
    failure = std::current_exception();
  }
  end(failure, /*has_timed_out=*/false);
}

int Work::sourceRank() const {
  TORCH_CHECK(operations_.size() == 1, "sourceRank: only a receive has a source");
  return static_cast<int>(operations_.front()->source_rank);
}

bool Work::is_completed_by(Instant until) {
  for (const auto& operation : operations_) {
    if (!is_done_by(operation, until)) return false;
  }
  await_end();
  return true;
}

bool Work::is_done_by(const std::shared_ptr<collective::Operation>& operation, Instant until) {
  net::Driver& driver = call_.context->fabric->driver(operation->group().engine);
  if (!runs_signal_handlers()) return driver.wait(operation, until);
  while (true) {
    const Instant look_at = base::earlier(until, net::now() + kSignalTick);
    if (driver.wait(operation, look_at)) return true;
    // Earlier than asked for: nobody will ever start it.
    if (look_at == until || net::now() < look_at) return false;
    run_signal_handlers();
  }
}

bool Work::wait(std::chrono::milliseconds timeout) {
  if (crypto::forked_child()) throw_error(forked_error());
  if (!is_completed_by(timeout == kNoTimeout ? Instant::never() : deadline_after(timeout))) {
    give_up(Error{ErrorCode::kTimeout, "wait() of " + describe_unfinished() + " of " +
                                           call_.context->describe() + " Timed out after " +
                                           std::to_string(timeout.count()) +
                                           " ms; the group cannot be used any more"});
  }
  await_end();
  rethrow_failure();
  synchronize();
  return true;
}

// The caller's stream goes on when the results have arrived in device memory.
void Work::synchronize() {
  for (const Call::Part& part : call_.parts) {
    const DeviceStage* stage = part.table.stage();
    if (stage != nullptr) stage->hold(current_stream(stage->stream().device()));
  }
  if (!call_.earlier) return;
  for (const c10::Stream& stream : call_.earlier->result_streams()) {
    c10::Event arrived(stream.device_type());
    arrived.record(stream);
    arrived.block(current_stream(stream.device()));
  }
}

std::optional<c10::Stream> Work::result_stream() const {
  const DeviceStage* last = nullptr;
  for (const Call::Part& part : call_.parts) {
    if (part.table.stage() != nullptr) last = part.table.stage();
  }
  if (last == nullptr) return std::nullopt;
  for (const Call::Part& part : call_.parts) {
    if (part.table.stage() != nullptr) part.table.stage()->hold(last->stream());
  }
  return last->stream();
}

std::string Work::describe_unfinished() const {
  for (const auto& operation : operations_) {
    if (!operation->is_visible.load()) return operation->describe();
  }
  return operations_.back()->describe();
}

void Work::abort() {
  give_up(
      Error{ErrorCode::kAborted, "abort() was called on a work of " + call_.context->describe()});
}

void Work::give_up(const Error& error) {
  call_.context->fabric->abort_group(call_.context->groups, error);
}

// --- A work of works ---------------------------------------------------------------------------

CoalescedWork::CoalescedWork(int rank, std::vector<c10::intrusive_ptr<c10d::Work>> works)
    : c10d::Work(rank, c10d::OpType::COALESCED), works_(std::move(works)) {}

bool CoalescedWork::isCompleted() {
  return std::all_of(works_.begin(), works_.end(),
                     [](const auto& work) { return work->isCompleted(); });
}

bool CoalescedWork::isSuccess() const {
  return std::all_of(works_.begin(), works_.end(),
                     [](const auto& work) { return work->isSuccess(); });
}

std::exception_ptr CoalescedWork::exception() const {
  for (const auto& work : works_) {
    if (const auto failure = work->exception()) return failure;
  }
  return nullptr;
}

std::vector<at::Tensor> CoalescedWork::result() {
  std::vector<at::Tensor> results;
  for (const auto& work : works_) {
    for (const at::Tensor& tensor : work->result()) results.push_back(tensor);
  }
  return results;
}

void CoalescedWork::synchronize() {
  for (const auto& work : works_) work->synchronize();
}

bool CoalescedWork::wait(std::chrono::milliseconds timeout) {
  for (const auto& work : works_) work->wait(timeout);
  return true;
}

void CoalescedWork::abort() {
  for (const auto& work : works_) work->abort();
}

c10::intrusive_ptr<c10::ivalue::Future> CoalescedWork::getFuture() {
  c10::List<c10::intrusive_ptr<c10::ivalue::Future>> futures(
      c10::FutureType::create(c10::ListType::create(c10::TensorType::get())));
  for (const auto& work : works_) futures.push_back(work->getFuture());
  auto all = make_tensors_future(result());
  c10::collectAll(futures)->addCallback(
      [all, self = c10::intrusive_ptr<CoalescedWork>::unsafe_reclaim_from_nonowning(this)](
          c10::ivalue::Future&) {
        if (const auto failure = self->exception()) {
          all->setError(failure);
        } else {
          all->markCompleted(self->result());
        }
      });
  return all;
}

c10::intrusive_ptr<c10::ivalue::Future> CoalescedWork::getFutureResult() {
  auto result = c10::make_intrusive<c10::ivalue::Future>(c10::IntType::get());
  getFuture()->addCallback([result](c10::ivalue::Future& all) {
    const auto value = all.hasError() ? c10d::WorkResult::COMM_ERROR : c10d::WorkResult::SUCCESS;
    result->markCompleted(static_cast<int64_t>(value));
  });
  return result;
}

}  // namespace securefabric::torch_room
