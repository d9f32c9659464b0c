// What each step of a byte's way costs at its best, one at a time: sealed from a tensor in memory,
// sent and received from core to core, opened into the cache, added or copied to a tensor in
// memory. Packets and bursts are as large as the product's on loopback. bench/roofline.py sums the
// steps up.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "collective/reduce_kernels.h"
#include "crypto/aead.h"
#include "net/receive_buffers.h"
#include "net/udp_socket.h"
#include "transport/limits.h"

namespace securefabric {
namespace {

constexpr size_t kHeaderBytes = 16;
constexpr size_t kDatagramBytes = transport::kDatagramBytesMax;
constexpr size_t kSealedBytes = kDatagramBytes - kHeaderBytes;
constexpr size_t kPayloadBytes = kSealedBytes - crypto::kAuthTagBytes;
constexpr size_t kPacketsPerBurst = transport::kBurstBytesMax / kDatagramBytes;
constexpr size_t kBurstBytes = kPacketsPerBurst * kDatagramBytes;
// Much more than any cache has for one core; whole packets.
constexpr size_t kTensorPackets = (64u << 20) / kPayloadBytes;

void report(benchmark::State& state, size_t bytes) {
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * bytes));
}

// The next packet's place in a tensor that is walked through again and again.
class Walk {
 public:
  Walk() : tensor_(kTensorPackets * kPayloadBytes, 1) {}
  base::MutableBytes next() {
    at_ = (at_ + 1) % kTensorPackets;
    return base::MutableBytes(tensor_).subspan(at_ * kPayloadBytes, kPayloadBytes);
  }
  // Bytes behind what `next` gave.
  size_t following() const { return (kTensorPackets - 1 - at_) * kPayloadBytes; }

 private:
  std::vector<uint8_t> tensor_;
  size_t at_ = 0;
};

// A burst of sealed packets and what seals and opens them.
struct Burst {
  explicit Burst(const crypto::AeadProvider& provider)
      : key(provider.make_key(std::vector<uint8_t>(provider.key_bytes(), 7))),
        nonce(provider.nonce_bytes(), 1),
        bytes(kBurstBytes) {}

  base::MutableBytes packet(size_t index) {
    return base::MutableBytes(bytes).subspan(index % kPacketsPerBurst * kDatagramBytes,
                                             kDatagramBytes);
  }
  void seal(size_t index, base::Bytes payload, size_t following = 0) {
    const base::MutableBytes datagram = packet(index);
    key->seal(nonce, datagram.first(kHeaderBytes), std::array<base::Bytes, 1>{payload},
              datagram.subspan(kHeaderBytes), following);
  }
  bool open(size_t index, base::MutableBytes plaintext) {
    const base::MutableBytes datagram = packet(index);
    return key->open(nonce, datagram.first(kHeaderBytes), datagram.subspan(kHeaderBytes),
                     plaintext);
  }

  std::unique_ptr<crypto::AeadKey> key;
  std::vector<uint8_t> nonce, bytes;
};

void register_provider(const crypto::AeadProvider& provider) {
  const std::string suite(crypto::suite_name(provider.suite()));
  benchmark::RegisterBenchmark(("step/seal/" + suite).c_str(), [&](benchmark::State& state) {
    Burst burst(provider);
    Walk walk;
    size_t index = 0;
    for (auto _ : state) {
      const base::Bytes payload = walk.next();
      burst.seal(index++, payload, walk.following());
    }
    report(state, kPayloadBytes);
  });
  benchmark::RegisterBenchmark(("step/open/" + suite).c_str(), [&](benchmark::State& state) {
    Burst burst(provider);
    std::vector<uint8_t> plaintext(kPayloadBytes, 5);
    for (size_t i = 0; i < kPacketsPerBurst; ++i) burst.seal(i, plaintext);
    size_t index = 0;
    for (auto _ : state) {
      if (!burst.open(index++, plaintext)) state.SkipWithError("a genuine packet was refused");
    }
    report(state, kPayloadBytes);
  });
}

const bool kRegistered = [] {
  for (const crypto::Suite suite : crypto::all_suites()) {
    if (const auto provider = crypto::find_provider(suite)) register_provider(*provider.value());
  }
  return true;
}();

void reduce(benchmark::State& state) {
  const auto add =
      collective::find_reduce_kernel(collective::DataType::kFloat32, collective::ReduceOp::kSum);
  Walk walk;
  std::vector<uint8_t> arrived(kPayloadBytes, 1);
  for (auto _ : state) {
    const base::MutableBytes target = walk.next();
    add(target.data(), target.data(), arrived.data(), target.size());
  }
  report(state, kPayloadBytes);
}
BENCHMARK(reduce)->Name("step/reduce");

void copy(benchmark::State& state) {
  Walk walk;
  std::vector<uint8_t> arrived(kPayloadBytes, 1);
  for (auto _ : state) {
    const base::MutableBytes target = walk.next();
    std::memcpy(target.data(), arrived.data(), target.size());
    benchmark::ClobberMemory();
  }
  report(state, kPayloadBytes);
}
BENCHMARK(copy)->Name("step/copy");

// A stream of bursts over loopback from one core to another, of which one end is timed. Calls that
// find nothing are not counted.
class Loopback {
 public:
  using Clock = std::chrono::steady_clock;
  using Seconds = std::chrono::duration<double>;

  static base::Result<net::UdpSocket> bind() {
    return net::UdpSocket::bind(base::SocketAddress::ipv4({127, 0, 0, 1}, 0));
  }
  Loopback(net::UdpSocket from, net::UdpSocket to) : from_(std::move(from)), to_(std::move(to)) {}

  Seconds send() {
    const auto begun = Clock::now();
    (void)from_.send_burst(to_.local_address(), burst_, kDatagramBytes);
    return Clock::now() - begun;
  }
  // What one call took, and the bytes that it brought.
  std::pair<Seconds, size_t> receive() {
    const auto begun = Clock::now();
    const auto bursts = to_.receive(buffers_);
    const Seconds took = Clock::now() - begun;
    size_t bytes = 0;
    if (bursts) {
      for (const net::ReceivedBurst& one : bursts.value()) bytes += one.bytes.size();
    }
    return {bytes > 0 ? took : Seconds(), bytes};
  }

 private:
  net::UdpSocket from_, to_;
  net::ReceiveBuffers buffers_;
  const std::vector<uint8_t> burst_ = std::vector<uint8_t>(kBurstBytes, 3);
};

void cross_loopback(benchmark::State& state, bool times_sending) {
  auto from = Loopback::bind();
  auto to = Loopback::bind();
  if (!from || !to) return state.SkipWithError("no socket");
  Loopback loopback(std::move(from).value(), std::move(to).value());
  const std::jthread other_end([&](const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      if (times_sending) {
        loopback.receive();
      } else {
        loopback.send();
      }
    }
  });
  for (auto _ : state) {
    Loopback::Seconds took{};
    if (times_sending) {
      took = loopback.send();
    } else {
      for (size_t received = 0; received < kBurstBytes;) {
        const auto [seconds, bytes] = loopback.receive();
        // The last call may bring more than is needed.
        const size_t counted = std::min(bytes, kBurstBytes - received);
        if (bytes > 0) took += seconds * static_cast<double>(counted) / static_cast<double>(bytes);
        received += counted;
      }
    }
    state.SetIterationTime(took.count());
  }
  report(state, kBurstBytes);
}
BENCHMARK_CAPTURE(cross_loopback, send, true)->Name("step/send")->UseManualTime();
BENCHMARK_CAPTURE(cross_loopback, receive, false)->Name("step/receive")->UseManualTime();

}  // namespace
}  // namespace securefabric
