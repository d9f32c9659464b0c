// What a packet costs: seal and open by every provider of this CPU, beside a copy of the bytes.
// A packet is gathered as the transport does: a header as associated data, a frame header, payload.
#include <benchmark/benchmark.h>

#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "crypto/aead.h"
#include "crypto/packet_key.h"

namespace securefabric::crypto {
namespace {

constexpr size_t kHeaderBytes = 16;
constexpr size_t kFrameBytes = 48;
// A packet of the smallest datagrams, of an MTU of 1,500, of 9,000.
constexpr std::array<int64_t, 3> kPayloads = {64, 1'424, 8'928};

struct Packet {
  Packet(const AeadProvider& provider, size_t payload_bytes)
      : key(provider.make_key(std::vector<uint8_t>(provider.key_bytes(), 7))),
        nonce(provider.nonce_bytes(), 1),
        aad(kHeaderBytes, 2),
        frame(kFrameBytes, 3),
        payload(payload_bytes - kFrameBytes, 4),
        sealed(payload_bytes + kAuthTagBytes),
        opened(payload_bytes) {
    seal();
  }
  void seal() { key->seal(nonce, aad, std::array<base::Bytes, 2>{frame, payload}, sealed); }
  bool open() { return key->open(nonce, aad, sealed, opened); }

  std::unique_ptr<AeadKey> key;
  std::vector<uint8_t> nonce, aad, frame, payload, sealed, opened;
};

void report(benchmark::State& state, size_t bytes) {
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * bytes));
}

void register_provider(const AeadProvider& provider) {
  const std::string name = std::string(suite_name(provider.suite())) + "/" + provider.name();
  for (const int64_t bytes : kPayloads) {
    benchmark::RegisterBenchmark(("seal/" + name + "/" + std::to_string(bytes)).c_str(),
                                 [&provider, bytes](benchmark::State& state) {
                                   Packet packet(provider, static_cast<size_t>(bytes));
                                   for (auto _ : state) {
                                     packet.seal();
                                     benchmark::ClobberMemory();
                                   }
                                   report(state, static_cast<size_t>(bytes));
                                 });
    benchmark::RegisterBenchmark(("open/" + name + "/" + std::to_string(bytes)).c_str(),
                                 [&provider, bytes](benchmark::State& state) {
                                   Packet packet(provider, static_cast<size_t>(bytes));
                                   for (auto _ : state) {
                                     if (!packet.open())
                                       state.SkipWithError("a genuine packet was refused");
                                     benchmark::ClobberMemory();
                                   }
                                   report(state, static_cast<size_t>(bytes));
                                 });
  }
}

const bool kRegistered = [] {
  for (const Suite suite : all_suites()) {
    for (const AeadProvider* provider : candidate_providers(suite)) register_provider(*provider);
  }
  return true;
}();

void copy(benchmark::State& state) {
  const auto bytes = static_cast<size_t>(state.range(0));
  std::vector<uint8_t> from(bytes, 1), to(bytes);
  for (auto _ : state) {
    std::memcpy(to.data(), from.data(), bytes);
    benchmark::ClobberMemory();
  }
  report(state, bytes);
}
BENCHMARK(copy)->Arg(1'424)->Arg(8'928);

void make_path_key(benchmark::State& state) {
  const AeadProvider& provider = *find_provider(Suite::kAes256Gcm).value();
  for (auto _ : state) {
    PathSealer sealer(provider, SecretBuffer::allocate(32), base::PathId{1}, 22);
    std::array<uint8_t, kAuthTagBytes> out;
    benchmark::DoNotOptimize(sealer.seal({}, {}, out));
  }
}
BENCHMARK(make_path_key);

}  // namespace
}  // namespace securefabric::crypto
