// What a rank's machine adds to its engine: socket buffers of limited size, and a CPU that takes
// its time. Datagrams wait in the buffers while the CPU is busy; what does not fit is dropped, as
// the kernel does.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "base/time.h"
#include "sim/network.h"

namespace securefabric::sim {

struct HostOptions {
  // Datagrams that wait in one socket. 0: any number. (The kernel counts about twice as much.)
  uint64_t socket_buffer_bytes = 0;
  // CPU time of a system call. One call sends a burst, one receives what waits of one route.
  base::Duration call_cost;
  base::Duration datagram_cost;  // CPU time of each datagram sent or received
  double byte_cost_ns = 0;       // nanoseconds of CPU time per byte sent or received

  bool has_costs() const {
    return call_cost > base::Duration() || datagram_cost > base::Duration() || byte_cost_ns > 0;
  }
  base::Duration cost(uint64_t calls, uint64_t datagrams, uint64_t bytes) const {
    const auto of_bytes = static_cast<int64_t>(byte_cost_ns * static_cast<double>(bytes));
    return call_cost * static_cast<int64_t>(calls) +
           datagram_cost * static_cast<int64_t>(datagrams) + base::Duration::nanos(of_bytes);
  }
};

class Host {
 public:
  Host(const HostOptions& options, size_t sockets) : options_(options), queued_(sockets) {}

  // False when the socket's buffer is full: the datagram is lost.
  bool admit(Parcel parcel) {
    uint64_t& queued = queued_[parcel.route.to_socket];
    const uint64_t limit = options_.socket_buffer_bytes;
    if (limit > 0 && queued + parcel.bytes.size() > limit) return false;
    queued += parcel.bytes.size();
    waiting_.push_back(std::move(parcel));
    return true;
  }
  bool has_waiting() const { return !waiting_.empty(); }
  // Takes the oldest one out of its buffer; something waits.
  Parcel take() {
    Parcel parcel = std::move(waiting_.front());
    waiting_.pop_front();
    queued_[parcel.route.to_socket] -= parcel.bytes.size();
    return parcel;
  }

 private:
  const HostOptions& options_;    // of the cluster, which outlives the host
  std::vector<uint64_t> queued_;  // bytes that wait, by socket
  std::deque<Parcel> waiting_;    // of all sockets, in the order of arrival
};

}  // namespace securefabric::sim
