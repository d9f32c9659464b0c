// Sending, receiving and the barriers of a group.
#include <pybind11/pybind11.h>

#include "net/clock.h"
#include "torch/backend.h"
#include "torch/errors.h"

namespace securefabric::torch_room {

using base::Error;
using base::ErrorCode;
using base::Instant;
using collective::OperationKind;
using Works = c10::intrusive_ptr<c10d::Work>;

// --- Point to point ----------------------------------------------------------------------------

Works Backend::point_to_point(const char* name, c10d::OpType type, OperationKind kind,
                              std::vector<at::Tensor>& tensors, uint32_t peer, int tag) {
  TORCH_CHECK(tensors.size() == 1, "securefabric::", name, " takes a single tensor");
  const at::Tensor& tensor = tensors.front();
  check_tensor(name, tensor);
  TORCH_CHECK(tag >= 0, "securefabric::", name, ": Tag must be nonnegative (tag ", tag, ")");
  const bool is_any = type == c10d::OpType::RECVANYSOURCE;
  TORCH_CHECK(is_any || peer < static_cast<uint32_t>(size_), "securefabric::", name,
              ": invalid rank ", static_cast<int>(peer), " in a group of ", size_);
  TORCH_CHECK(peer != static_cast<uint32_t>(rank_), "securefabric::", name,
              ": a rank cannot send to itself");
  CallBuilder call = begin(name, type, c10d::kUnsetTimeout, /*is_async=*/true);
  // Bytes on both ends: sender and receiver need not use the same type, only the same size.
  Part part = call.make_message(kind, peer, static_cast<uint32_t>(tag), tensor.nbytes());
  if (kind == OperationKind::kSend) {
    part.inputs = {part.table.add_input(tensor)};
  } else {
    part.outputs = {part.table.add_output(tensor)};
  }
  call.add(std::move(part));
  call.profile(tensor);
  call.yield(tensors);
  return issue(std::move(call));
}

Works Backend::send(std::vector<at::Tensor>& tensors, int peer, int tag) {
  return point_to_point("send", c10d::OpType::SEND, OperationKind::kSend, tensors,
                        static_cast<uint32_t>(peer), tag);
}

Works Backend::recv(std::vector<at::Tensor>& tensors, int peer, int tag) {
  return point_to_point("recv", c10d::OpType::RECV, OperationKind::kReceive, tensors,
                        static_cast<uint32_t>(peer), tag);
}

Works Backend::recvAnysource(std::vector<at::Tensor>& tensors, int tag) {
  return point_to_point("recvAnySource", c10d::OpType::RECVANYSOURCE, OperationKind::kReceive,
                        tensors, collective::kAnySource, tag);
}

// --- Barriers ----------------------------------------------------------------------------------

Works Backend::barrier(const c10d::BarrierOptions& opts) {
  CallBuilder call = begin("barrier", c10d::OpType::BARRIER, opts.timeout, opts.asyncOp);
  call.add(Part{});
  call.wait_for_earlier();
  return issue(std::move(call));
}

namespace {

// A rank in a monitored barrier tells rank 0 that it is there, and rank 0 lets it go. Messages of
// no bytes under tags that no user can choose, since those are not negative.
constexpr uint32_t kArrivalTag = 1U << 31;
constexpr uint32_t kReleaseTag = kArrivalTag + 1;

std::string joined(const std::vector<int>& ranks) {
  std::string text;
  for (const int rank : ranks) text.append(text.empty() ? "" : ", ").append(std::to_string(rank));
  return text;
}

std::string what_of(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  } catch (const std::exception& error) {
    return error.what();
  }
}

}  // namespace

c10::intrusive_ptr<Work> Backend::signal(OperationKind kind, int peer, uint32_t tag,
                                         std::chrono::milliseconds timeout) {
  CallBuilder call(context_, nullptr, c10d::OpType::BARRIER, timeout, /*is_async=*/true);
  Part part = call.make_message(kind, static_cast<uint32_t>(peer), tag, 0);
  (kind == OperationKind::kSend ? part.inputs : part.outputs).push_back(collective::Region{});
  call.add(std::move(part));
  const std::lock_guard<std::mutex> lock(issue_mutex_);
  return std::move(call).start(sequence_.load());
}

void Backend::monitoredBarrier(const c10d::BarrierOptions& opts, bool wait_all_ranks) {
  const auto timeout =
      opts.timeout == c10d::kUnsetTimeout ? options_->timeout : bounded(opts.timeout);
  try {
    if (rank_ == 0) return await_arrivals(timeout, wait_all_ranks);
    await_release(std::max(timeout, options_->timeout));
  } catch (const pybind11::error_already_set&) {
    // Ctrl-C: a barrier is several messages, and the next one would meet the rest of them.
    fabric().abort_group(context_->groups,
                         Error{ErrorCode::kAborted, "rank " + std::to_string(rank_) +
                                                        " was interrupted in monitoredBarrier"});
    throw;
  }
}

// The words are Gloo's. Only rank 0 enforces the timeout, so that it is the one to say who is
// missing; the others learn of its failure by the group's end.
void Backend::await_arrivals(std::chrono::milliseconds timeout, bool wait_all_ranks) {
  const Instant until = deadline_after(timeout);
  constexpr auto kUnlimited = std::chrono::milliseconds::max();
  std::vector<c10::intrusive_ptr<Work>> arrivals;
  for (int peer = 1; peer < size_; ++peer) {
    arrivals.push_back(signal(OperationKind::kReceive, peer, kArrivalTag, kUnlimited));
  }
  const std::string limit = std::to_string(timeout.count()) + " ms";
  std::vector<int> present;
  std::vector<int> missing;
  for (int peer = 1; peer < size_; ++peer) {
    Work& arrival = *arrivals[static_cast<size_t>(peer) - 1];
    const bool is_late = net::now() >= until;
    const bool has_ended = arrival.is_completed_by(until);
    if (has_ended && arrival.isSuccess()) {
      present.push_back(peer);
      continue;
    }
    missing.push_back(peer);
    if (wait_all_ranks) continue;
    if (is_late && !has_ended) {
      fail_barrier("Rank 0 timed out in monitoredBarrier after " + limit + ".\n" +
                   (present.empty() ? "No ranks successfully processed in monitoredBarrier."
                                    : "Successfully processed ranks: " + joined(present)));
    }
    fail_barrier("[Rank 0]: Rank " + std::to_string(peer) + " failed to pass monitoredBarrier in " +
                 limit + "\n Original exception: \n" +
                 (has_ended ? what_of(arrival.exception()) : "the rank has not called it"));
  }
  if (!missing.empty()) {
    fail_barrier("[Rank 0]: Ranks " + joined(missing) + " failed to pass monitoredBarrier in " +
                 limit);
  }
  for (int peer = 1; peer < size_; ++peer) {
    signal(OperationKind::kSend, peer, kReleaseTag, options_->timeout)->wait();
  }
}

void Backend::await_release(std::chrono::milliseconds timeout) {
  try {
    signal(OperationKind::kSend, 0, kArrivalTag, timeout)->wait();
    signal(OperationKind::kReceive, 0, kReleaseTag, timeout)->wait();
  } catch (const pybind11::error_already_set&) {
    throw;
  } catch (const std::exception&) {
    throw_error(Error{ErrorCode::kPeerLost,
                      "Rank " + std::to_string(rank_) +
                          " successfully reached monitoredBarrier, but received errors while "
                          "waiting for send/recv from rank 0. Please check rank 0 logs for faulty "
                          "rank.\n Original exception: \n" +
                          what_of(std::current_exception())});
  }
}

void Backend::fail_barrier(const std::string& message) {
  const Error error{ErrorCode::kTimeout, message};
  fabric().abort_group(context_->groups, error);
  throw_error(error);
}

}  // namespace securefabric::torch_room
