#include "torch/work.h"

#include <ATen/core/ivalue.h>

#include <algorithm>

#include "crypto/secret.h"
#include "net/clock.h"
#include "torch/errors.h"

namespace securefabric::torch_room {

using base::Duration;
using base::Error;
using base::ErrorCode;
using base::Instant;

namespace {

c10::intrusive_ptr<c10::ivalue::Future> make_tensors_future() {
  return c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()));
}

Error forked_error() {
  return Error{ErrorCode::kForked,
               "this process was forked after init_process_group; its copy of the keys is gone. "
               "Start it with multiprocessing's 'spawn' or 'forkserver'"};
}

}  // namespace

Work::Work(int rank, Call call)
    : c10d::Work(rank, call.type, call.title.empty() ? nullptr : call.title.c_str(),
                 std::make_optional(call.profiled)),
      call_(std::move(call)),
      started_at_(net::now()) {}

void Work::expect(size_t operations) {
  operations_.reserve(operations);
  operations_left_.store(operations);
  if (operations == 0) complete();
}

void Work::start(const std::shared_ptr<collective::Operation>& operation) {
  operations_.push_back(operation);
  auto self = c10::intrusive_ptr<Work>::unsafe_reclaim_from_nonowning(this);
  operation->on_done = [self, raw = operation.get()] { self->on_operation_done(*raw); };
  const base::Status status = call_.fabric->driver().submit(operation);
  if (status) return;
  operation->on_done = nullptr;
  on_failure(status.error());
}

void Work::on_operation_done(const collective::Operation& operation) {
  if (operation.error) return on_failure(*operation.error);
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
  std::exception_ptr failure;
  if (error_) {
    failure = make_exception(*error_);
  } else {
    try {
      for (const TensorTable& table : call_.tables) table.finish();
    } catch (...) {
      failure = std::current_exception();
    }
  }
  c10::intrusive_ptr<c10::ivalue::Future> future;
  c10::intrusive_ptr<c10::ivalue::Future> future_result;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    finished_at_ = net::now();
    futures_taken_ = true;
    future = future_;
    future_result = future_result_;
  }
  finish(failure);
  // Callbacks run in here; a waiter that saw finish() need not wait for them.
  if (future) settle(*future, call_.results, failure);
  if (future_result) future_result->markCompleted(result_value());
}

void Work::settle(c10::ivalue::Future& future, const c10::IValue& value,
                  const std::exception_ptr& failure) {
  if (failure) {
    future.setError(failure);
  } else {
    future.markCompleted(value);
  }
}

bool Work::isCompleted() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return completed_;
}

bool Work::isSuccess() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return completed_ && !exception_;
}

std::exception_ptr Work::exception() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return exception_;
}

int Work::sourceRank() const {
  TORCH_CHECK(operations_.size() == 1, "sourceRank: only a receive has a source");
  return static_cast<int>(operations_.front()->source_rank);
}

std::vector<at::Tensor> Work::result() {
  return call_.results;
}

bool Work::wait(std::chrono::milliseconds timeout) {
  if (crypto::forked_child()) throw_error(forked_error());
  const Instant until =
      timeout == kNoTimeout ? Instant::never() : net::now() + Duration::millis(timeout.count());
  for (const auto& operation : operations_) {
    if (call_.fabric->driver().wait(operation, until)) continue;
    const std::string waited = std::to_string(timeout.count()) + " ms";
    give_up(Error{ErrorCode::kTimeout,
                  "wait() of " + operation->describe() + " of process group '" + call_.group->name +
                      "' Timed out after " + waited + "; the group cannot be used any more"});
    break;
  }
  std::unique_lock<std::mutex> lock(mutex_);
  cv_.wait(lock, [this] { return completed_; });
  if (exception_) std::rethrow_exception(exception_);
  return true;
}

void Work::abort() {
  give_up(Error{ErrorCode::kAborted,
                "abort() was called on a work of process group '" + call_.group->name + "'"});
}

void Work::give_up(const Error& error) {
  (void)call_.fabric->driver().run([&](collective::Engine& engine, Instant now) {
    engine.abort_group(*call_.group, error, now);
  });
}

c10::intrusive_ptr<c10::ivalue::Future> Work::getFuture() {
  std::unique_lock<std::mutex> lock(mutex_);
  if (future_) return future_;
  future_ = make_tensors_future();
  const auto future = future_;
  if (!futures_taken_) return future;
  // complete() did not see it any more, so it is settled here.
  cv_.wait(lock, [this] { return completed_; });
  lock.unlock();
  settle(*future, call_.results, exception_);
  return future;
}

c10::intrusive_ptr<c10::ivalue::Future> Work::getFutureResult() {
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

c10::IValue Work::result_value() const {
  const bool timed_out = error_ && error_->code == ErrorCode::kTimeout;
  const auto result = !exception_ ? c10d::WorkResult::SUCCESS
                      : timed_out ? c10d::WorkResult::TIMEOUT
                                  : c10d::WorkResult::COMM_ERROR;
  return static_cast<int64_t>(result);
}

float Work::getDuration() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  TORCH_CHECK(completed_, "getDuration: the work is not complete");
  return static_cast<float>((finished_at_ - started_at_).seconds() * 1e3);
}

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
  auto all = make_tensors_future();
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

}  // namespace securefabric::torch_room
