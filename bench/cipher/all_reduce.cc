// Times all_reduce among processes of this host, on the fabric alone: no Python, no PyTorch, no
// store. Linked twice: as bench_all_reduce with the product's ciphers, and with null_cipher.cc in
// their place as bench_all_reduce_null. bench/ablations.py runs both and compares.
#include <getopt.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"
#include "collective/plan.h"
#include "collective/stripes.h"
#include "net/clock.h"
#include "net/entropy.h"
#include "net/fabric.h"

#ifndef SF_BENCH_PROVIDER
#define SF_BENCH_PROVIDER ""  // what the provider must be called; empty: anything but "null"
#endif

namespace securefabric::bench {
namespace {

using base::Duration;
using base::Instant;
using base::Rank;

constexpr uint32_t kRanksMax = 16;
constexpr size_t kEnginesMax = 16;    // as many as securefabric/options.py allows
constexpr size_t kAddressesMax = 16;  // of an engine
constexpr size_t kCallsMax = 20'000;
constexpr size_t kCallsMin = 10;
constexpr size_t kWarmupCalls = 5;
constexpr Duration kPatience = Duration::seconds(60);

struct Settings {
  crypto::Suite suite = crypto::Suite::kAegis256x2;
  uint32_t ranks = 2;
  std::vector<uint64_t> sizes;  // bytes, multiples of 4
  double seconds = 0.5;         // of timing, per size
  size_t paths = net::FabricConfig().paths_per_peer;
  size_t engines = net::FabricConfig().engines;  // of each rank
  bool use_gso = true;
  bool use_gro = true;
};

// What a rank tells the others of one of its engines.
struct EnginePage {
  std::array<uint8_t, 32> public_key;
  base::Spi spi_base;
  std::array<base::SocketAddress, kAddressesMax> addresses;
  size_t address_count;
};
// What a rank tells the others and its parent, in memory that all of them share. A rank writes
// only its own.
struct RankPage {
  std::atomic<bool> is_published;
  base::BootId boot_id;
  std::array<EnginePage, kEnginesMax> engines;  // as many as the settings say
  size_t datagram_bytes_max;
  uint64_t wrong;                         // elements of the checked call
  uint64_t wrong_in_all;                  // the same over all sizes
  double cpu_s;                           // of all timed calls
  std::array<double, kCallsMax> time_us;  // of each timed call
};
struct SharedPages {
  std::atomic<size_t> calls;  // to time, as rank 0 has found
  std::array<RankPage, kRanksMax> ranks;
};

[[noreturn]] void fail(const std::string& why) {
  std::fprintf(stderr, "bench_all_reduce: %s\n", why.c_str());
  std::_Exit(2);
}

template <typename T>
T must(base::Result<T> result) {
  if (!result) fail(result.error().message);
  return std::move(result).value();
}

double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

class RankProcess {
 public:
  RankProcess(const Settings& settings, SharedPages& pages, uint32_t rank,
              base::MutableBytes job_secret)
      : settings_(settings), pages_(pages), rank_(rank) {
    net::FabricConfig config;
    config.rank = Rank{rank};
    config.world_size = config.local_world_size = settings.ranks;
    config.addresses = {"127.0.0.1"};
    config.paths_per_peer = settings.paths;
    config.engines = settings.engines;
    config.use_gso = settings.use_gso;
    config.use_gro = settings.use_gro;
    fabric_ = must(
        net::Fabric::make(config, settings.suite, crypto::SecretBuffer::copy_and_wipe(job_secret),
                          [this](const std::string&, Rank peer, bool) { return look_up(peer); }));
    publish();
    std::vector<Rank> members;
    for (uint32_t i = 0; i < settings.ranks; ++i) members.push_back(Rank{i});
    groups_ = must(
        fabric_->add_group({"bench", "bench", "bench", rank, members}, /*eager_connect=*/true));
  }

  // Leaves the times in this rank's page.
  void measure(uint64_t size_bytes) {
    std::vector<float> values(size_bytes / sizeof(float), static_cast<float>(rank_ + 1));
    RankPage& own = pages_.ranks[rank_];
    all_reduce(values);
    const auto sum = static_cast<float>(settings_.ranks * (settings_.ranks + 1) / 2);
    own.wrong = static_cast<uint64_t>(
        std::count_if(values.begin(), values.end(), [sum](float value) { return value != sum; }));
    own.wrong_in_all += own.wrong;
    std::fill(values.begin(), values.end(), 0.0F);

    const Instant warmup = net::now();
    for (size_t i = 0; i < kWarmupCalls; ++i) all_reduce(values);
    if (rank_ == 0) {
      const double each_s = (net::now() - warmup).seconds() / kWarmupCalls;
      pages_.calls =
          std::clamp(static_cast<size_t>(settings_.seconds / each_s), kCallsMin, kCallsMax);
    }
    barrier();
    const size_t calls = pages_.calls;
    const double cpu_before = cpu_seconds();
    for (size_t i = 0; i < calls; ++i) {
      const Instant before = net::now();
      all_reduce(values);
      own.time_us[i] = (net::now() - before).seconds() * 1e6;
    }
    own.cpu_s = cpu_seconds() - cpu_before;
    barrier();
  }

  void end() { fabric_->shutdown(); }

 private:
  void publish() {
    RankPage& own = pages_.ranks[rank_];
    own.boot_id = fabric_->boot_id();
    for (size_t i = 0; i < settings_.engines; ++i) {
      const net::EngineEntry& engine = fabric_->engine_entries()[i];
      EnginePage& page = own.engines[i];
      page.public_key = engine.public_key;
      page.spi_base = engine.spi_base;
      page.address_count = engine.addresses.size();
      SF_CHECK(page.address_count <= kAddressesMax);
      std::copy(engine.addresses.begin(), engine.addresses.end(), page.addresses.begin());
    }
    own.datagram_bytes_max = fabric_->datagram_bytes_max();
    const auto entry = entry_of(rank_);
    if (const base::Status status = fabric_->set_entry(entry); !status) {
      fail(status.error().message);
    }
    own.is_published = true;
  }

  static std::array<uint8_t, 1> entry_of(uint32_t rank) { return {static_cast<uint8_t>(rank)}; }

  base::Result<std::optional<net::Fabric::Peer>> look_up(Rank peer) const {
    const RankPage& page = pages_.ranks[peer.value];
    if (!page.is_published) return std::optional<net::Fabric::Peer>();
    transport::PeerDescription description;
    description.rank = peer;
    description.boot_id = page.boot_id;
    description.datagram_bytes_max = page.datagram_bytes_max;
    const auto entry = entry_of(peer.value);
    description.entry.assign(entry.begin(), entry.end());
    net::Fabric::Peer engines;
    for (size_t i = 0; i < settings_.engines; ++i) {
      const EnginePage& engine = page.engines[i];
      description.public_key.assign(engine.public_key.begin(), engine.public_key.end());
      description.spi_base = engine.spi_base;
      description.addresses.assign(engine.addresses.begin(),
                                   engine.addresses.begin() + engine.address_count);
      engines.push_back(description);
    }
    return std::optional(std::move(engines));
  }

  void all_reduce(std::vector<float>& values) {
    const uint64_t bytes = values.size() * sizeof(float);
    collective::CollectiveRequest plan;
    plan.kind = collective::OperationKind::kAllReduce;
    plan.reduce_op = collective::ReduceOp::kSum;
    plan.element_bytes = sizeof(float);
    plan.inputs = plan.outputs = {collective::Region{0, 0, bytes}};
    collective::OperationRequest request;
    request.data_type = collective::DataType::kFloat32;
    request.reduce_op = plan.reduce_op;
    request.count = values.size();
    request.buffers = {base::MutableBytes(reinterpret_cast<uint8_t*>(values.data()), bytes)};
    run(std::move(plan), std::move(request));
  }

  void barrier() {
    collective::CollectiveRequest plan;
    plan.kind = collective::OperationKind::kBarrier;
    run(std::move(plan), {});
  }

  // Cut as native/torch/call.cc cuts a call, and started in the order of native/torch/work.cc.
  void run(collective::CollectiveRequest whole, const collective::OperationRequest& request) {
    whole.rank = groups_.front()->rank;
    whole.size = groups_.front()->size();
    whole.scratch_buffer = static_cast<uint32_t>(request.buffers.size());
    collective::StripeOptions options;  // a stripe has at least as many bytes as in the product
    options.engines = static_cast<uint32_t>(groups_.size());
    const uint32_t stripes = collective::count_stripes(whole, options);
    const uint64_t number = next_collective_++;
    std::vector<std::shared_ptr<collective::Operation>> operations;
    for (uint32_t stripe = 0; stripe < stripes; ++stripe) {
      auto wanted = stripes == 1 ? std::move(whole) : collective::stripe_of(whole, stripe, stripes);
      operations.push_back(make_operation(wanted, request, stripe, number));
    }
    operations.front()->is_synchronous = true;
    for (uint32_t engine = stripes; engine-- > 0;) {
      net::Driver& driver = fabric_->driver(engine);
      const base::Status status =
          engine == 0 ? driver.submit(operations[0]) : driver.delegate(operations[engine]);
      if (!status) fail(status.error().message);
    }
    const Instant limit = net::now() + kPatience;
    for (uint32_t engine = 0; engine < stripes; ++engine) {
      if (!fabric_->driver(engine).wait(operations[engine], limit)) fail("an operation hangs");
      if (operations[engine]->error) fail(operations[engine]->error->message);
    }
  }

  std::shared_ptr<collective::Operation> make_operation(const collective::CollectiveRequest& wanted,
                                                        collective::OperationRequest request,
                                                        uint32_t engine, uint64_t number) const {
    request.group = groups_[engine];
    request.kind = wanted.kind;
    request.sequence = number;
    request.schedule = collective::plan(wanted);
    return std::make_shared<collective::Operation>(std::move(request));
  }

  const Settings& settings_;
  SharedPages& pages_;
  const uint32_t rank_;
  std::shared_ptr<net::Fabric> fabric_;
  net::Fabric::Groups groups_;    // the group in each engine
  uint64_t next_collective_ = 0;  // its number, the same in all engines
};

void print_times(const Settings& settings, const SharedPages& pages, uint64_t size_bytes) {
  double cpu_s = 0;
  uint64_t wrong = 0;
  std::printf("{\"size_bytes\": %llu, \"engines\": %zu, \"times_us\": [",
              static_cast<unsigned long long>(size_bytes), settings.engines);
  for (uint32_t rank = 0; rank < settings.ranks; ++rank) {
    const RankPage& page = pages.ranks[rank];
    cpu_s += page.cpu_s;
    wrong += page.wrong;
    for (size_t i = 0; i < pages.calls; ++i) {
      std::printf("%s%.2f", i > 0 ? "," : (rank > 0 ? ",[" : "["), page.time_us[i]);
    }
    std::printf("]");
  }
  std::printf("], \"cpu_s_per_call\": %.9f, \"wrong\": %llu}\n",
              cpu_s / static_cast<double>(pages.calls), static_cast<unsigned long long>(wrong));
  std::fflush(stdout);
}

// The linker replaces the provider by its symbol, and would not say if that had changed its name.
void check_provider(crypto::Suite suite) {
  const std::string name = must(crypto::find_provider(suite))->name();
  const std::string wanted = SF_BENCH_PROVIDER;
  const bool is_right = wanted.empty() ? name != "null" : name == wanted;
  if (!is_right) fail("built with the provider \"" + name + "\", which is not the one asked for");
}

void run_rank(const Settings& settings, SharedPages& pages, uint32_t rank,
              base::MutableBytes job_secret) {
  check_provider(settings.suite);  // not before the fork: a copy of ours would send nothing
  RankProcess process(settings, pages, rank, job_secret);
  for (const uint64_t size_bytes : settings.sizes) {
    process.measure(size_bytes);
    if (rank == 0) print_times(settings, pages, size_bytes);
  }
  process.end();
}

constexpr const char* kUsage =
    "usage: bench_all_reduce --sizes BYTES,... [--suite NAME] [--ranks N] [--seconds S]\n"
    "                        [--engines N] [--paths N] [--no-gso] [--no-gro]\n\n"
    "Starts N ranks on this host, each with as many engines, and prints a line of JSON per size:\n"
    "the microseconds of each call on each rank, CPU seconds of all ranks per call, elements that\n"
    "were wrong.\n";

// A number in [least, most], or the end of this program.
uint64_t parse_number(const char* text, uint64_t least, uint64_t most) {
  char* end = nullptr;
  const unsigned long long value = std::strtoull(text, &end, 10);
  if (*text == '\0' || *end != '\0' || value < least || value > most) {
    fail(std::string(text) + " is no number between " + std::to_string(least) + " and " +
         std::to_string(most));
  }
  return value;
}

Settings parse_arguments(int argc, char** argv) {
  enum Option { kSizes = 1, kSuite, kRanks, kSeconds, kEngines, kPaths, kNoGso, kNoGro, kHelp };
  const option options[] = {{"sizes", required_argument, nullptr, kSizes},
                            {"suite", required_argument, nullptr, kSuite},
                            {"ranks", required_argument, nullptr, kRanks},
                            {"seconds", required_argument, nullptr, kSeconds},
                            {"engines", required_argument, nullptr, kEngines},
                            {"paths", required_argument, nullptr, kPaths},
                            {"no-gso", no_argument, nullptr, kNoGso},
                            {"no-gro", no_argument, nullptr, kNoGro},
                            {"help", no_argument, nullptr, kHelp},
                            {}};
  Settings settings;
  for (int chosen = 0; (chosen = getopt_long(argc, argv, "", options, nullptr)) != -1;) {
    switch (chosen) {
      case kSizes:
        for (const char* part = std::strtok(optarg, ","); part != nullptr;
             part = std::strtok(nullptr, ",")) {
          const uint64_t size = parse_number(part, sizeof(float), uint64_t{1} << 32);
          settings.sizes.push_back(size / sizeof(float) * sizeof(float));
        }
        break;
      case kSuite: settings.suite = must(crypto::parse_suite(optarg)); break;
      case kRanks:
        settings.ranks = static_cast<uint32_t>(parse_number(optarg, 1, kRanksMax));
        break;
      case kSeconds: settings.seconds = std::atof(optarg); break;
      case kEngines: settings.engines = parse_number(optarg, 1, kEnginesMax); break;
      case kPaths: settings.paths = parse_number(optarg, 1, 256); break;
      case kNoGso: settings.use_gso = false; break;
      case kNoGro: settings.use_gro = false; break;
      case kHelp: std::printf("%s", kUsage); std::exit(0);
      default: std::fprintf(stderr, "%s", kUsage); std::exit(2);
    }
  }
  if (settings.sizes.empty() || optind != argc) {
    std::fprintf(stderr, "%s", kUsage);
    std::exit(2);
  }
  return settings;
}

int run(int argc, char** argv) {
  const Settings settings = parse_arguments(argc, argv);
  void* memory =
      mmap(nullptr, sizeof(SharedPages), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) fail("no memory to share");
  auto* pages = new (memory) SharedPages();
  std::array<uint8_t, 32> secret{};
  if (const base::Status status = net::fill_entropy(secret); !status) fail(status.error().message);
  std::vector<pid_t> children;
  for (uint32_t rank = 0; rank < settings.ranks; ++rank) {
    const pid_t child = fork();
    if (child == 0) {
      run_rank(settings, *pages, rank, secret);
      std::_Exit(0);
    }
    if (child < 0) fail("cannot start a process");
    children.push_back(child);
  }
  bool all_well = true;
  for (const pid_t child : children) {
    int status = 0;
    waitpid(child, &status, 0);
    all_well = all_well && WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }
  for (uint32_t rank = 0; rank < settings.ranks; ++rank) {
    all_well = all_well && pages->ranks[rank].wrong_in_all == 0;
  }
  return all_well ? 0 : 1;
}

}  // namespace
}  // namespace securefabric::bench

int main(int argc, char** argv) {
  return securefabric::bench::run(argc, argv);
}
