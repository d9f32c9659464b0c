// The collectives of a group from one barrier to the next. A barrier begins when they have ended.
#pragma once

#include <c10/core/Stream.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

namespace securefabric::torch_room {

// Messages do not belong to it: their other ends may come after the barrier.
class Phase {
 public:
  // A collective begins: before close(), by whoever holds the lock of issuing.
  void on_begin() { ++pending_; }

  // It has ended, on any thread. `results` is the stream on which they arrive in device memory.
  void on_end(const std::optional<c10::Stream>& results) {
    if (results) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (std::find(streams_.begin(), streams_.end(), *results) == streams_.end()) {
        streams_.push_back(*results);
      }
    }
    if (--pending_ == 0) std::exchange(then_, nullptr)();
  }

  // Once, by whoever holds the lock of issuing: nothing begins any more. True when all have ended.
  // Otherwise the thread that ends the last one calls `then`, before that one's callbacks.
  bool close(std::function<void()> then) {
    then_ = std::move(then);
    return --pending_ == 0;
  }

  // All that results arrive on, once all have ended.
  std::vector<c10::Stream> result_streams() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return streams_;
  }

 private:
  std::atomic<size_t> pending_{1};  // collectives that have not ended, and one until close()
  std::function<void()> then_;      // written before the count can become zero
  mutable std::mutex mutex_;
  std::vector<c10::Stream> streams_;  // each once; guarded by mutex_
};

}  // namespace securefabric::torch_room
