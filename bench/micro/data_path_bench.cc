// What a packet costs beside its cipher: header, frame, bookkeeping of what arrived, reduction.
#include <benchmark/benchmark.h>

#include <array>
#include <vector>

#include "base/random.h"
#include "base/range_set.h"
#include "collective/reduce_kernels.h"
#include "crypto/replay_window.h"
#include "wire/frames.h"
#include "wire/header.h"

namespace securefabric {
namespace {

void header(benchmark::State& state) {
  std::array<uint8_t, 64> datagram{};
  wire::Header read;
  base::PacketNumber number = 0;
  for (auto _ : state) {
    wire::encode_header({base::PathId{0x0102}, base::Spi{7}, number++}, datagram);
    benchmark::DoNotOptimize(wire::decode_header(datagram, read));
  }
}
BENCHMARK(header);

void data_frame(benchmark::State& state) {
  std::array<uint8_t, 64> buffer{};
  const std::vector<uint8_t> fragment(8'880);
  wire::DataFrame frame;
  frame.message_length = ~uint64_t{0};
  frame.bytes = fragment;
  for (auto _ : state) {
    base::ByteWriter writer(buffer);
    frame.offset += 16;
    wire::encode_data_header(frame, writer);
    benchmark::DoNotOptimize(buffer);
  }
}
BENCHMARK(data_frame);

void replay_window(benchmark::State& state) {
  crypto::ReplayWindow window;
  base::PacketNumber number = 0;
  for (auto _ : state) {
    benchmark::DoNotOptimize(window.check(number));
    window.commit(number++);
  }
}
BENCHMARK(replay_window);

// Fragments of a message of 64 MB, in order or shuffled among so many neighbours, as paths of
// unequal delay do.
void range_set(benchmark::State& state) {
  constexpr uint64_t kFragments = 7'500;
  constexpr uint64_t kFragmentBytes = 8'880;
  const auto neighbours = static_cast<uint64_t>(state.range(0));
  std::vector<uint64_t> order(kFragments);
  for (uint64_t i = 0; i < kFragments; ++i) order[i] = i;
  base::Random random(1);
  for (uint64_t i = 0; i + neighbours < kFragments; ++i) {
    std::swap(order[i], order[i + random.below(neighbours)]);
  }
  for (auto _ : state) {
    base::RangeSet arrived;
    for (const uint64_t i : order) arrived.insert(i * kFragmentBytes, (i + 1) * kFragmentBytes);
    if (arrived.ranges().size() != 1) state.SkipWithError("fragments are missing");
  }
  state.SetItemsProcessed(static_cast<int64_t>(state.iterations() * kFragments));
}
BENCHMARK(range_set)->Arg(1)->Arg(8)->Arg(64);

// A fragment in cache is added to a tensor; bytes are those of the fragment.
void reduce_sum(benchmark::State& state, collective::DataType type, collective::Isa isa) {
  if (!collective::is_isa_supported(isa)) return state.SkipWithError("not on this CPU");
  constexpr size_t kBytes = 8'880;
  const auto reduce = collective::find_reduce_kernel(type, collective::ReduceOp::kSum, isa);
  std::vector<uint8_t> target(kBytes), right(kBytes);
  for (auto _ : state) {
    reduce(target.data(), target.data(), right.data(), kBytes);
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * kBytes));
}
BENCHMARK_CAPTURE(reduce_sum, float32, collective::DataType::kFloat32, collective::best_isa());
BENCHMARK_CAPTURE(reduce_sum, bfloat16, collective::DataType::kBfloat16, collective::best_isa());
BENCHMARK_CAPTURE(reduce_sum, float32_baseline, collective::DataType::kFloat32,
                  collective::Isa::kBaseline);

}  // namespace
}  // namespace securefabric
