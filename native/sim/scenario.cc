#include "sim/scenario.h"

#include <algorithm>
#include <array>
#include <memory>

#include "base/random.h"
#include "sim/elements.h"

namespace securefabric::sim {

using base::Duration;
using base::Instant;
using collective::DataType;
using collective::OperationKind;
using collective::ReduceOp;

namespace {

constexpr std::array kKinds = {
    OperationKind::kAllReduce, OperationKind::kBroadcast,     OperationKind::kReduce,
    OperationKind::kAllGather, OperationKind::kReduceScatter, OperationKind::kAllToAll,
    OperationKind::kGather,    OperationKind::kScatter,       OperationKind::kBarrier};
constexpr std::array kReduceOps = {ReduceOp::kSum,   ReduceOp::kAvg,    ReduceOp::kProduct,
                                   ReduceOp::kMin,   ReduceOp::kMax,    ReduceOp::kBitAnd,
                                   ReduceOp::kBitOr, ReduceOp::kBitXor, ReduceOp::kPremulSum};
// After the last result, the engines have this long to settle what is in flight.
constexpr Duration kDrainTime = Duration::seconds(30);
// Bytes on the wire per byte of payload, and per second and pair of ranks, beyond which a run is a
// storm: far above what 20 % loss costs.
constexpr uint64_t kAmplificationMax = 20;
constexpr uint64_t kIdleBytesPerSecondMax = 1 << 20;
constexpr uint64_t kSmallBytesMax = 8 << 20;

template <typename Array>
auto draw(base::Random& random, const Array& choices) {
  return choices[random.below(std::size(choices))];
}

// Lengths around the limits matter more than the lengths between them.
uint64_t draw_count(base::Random& random, uint64_t count_max) {
  switch (random.below(8)) {
    case 0: return 0;
    case 1: return 1 + random.below(8);
    case 2: return count_max;
    default: return random.below(count_max + 1);
  }
}

bool may_reduce(ReduceOp op, DataType type, const ScenarioOptions& options) {
  return is_defined(op, type) && is_exact(op, type, options.cluster.ranks);
}

Call draw_call(const ScenarioOptions& options, base::Random& random) {
  Call call;
  const bool is_drawn = !options.kind.has_value();
  call.kind = is_drawn ? draw(random, kKinds) : *options.kind;
  call.data_type = options.data_type.value_or(draw(random, oracle_types()));
  ReduceOp op = ReduceOp::kNone;
  while (!may_reduce(op, call.data_type, options)) {
    op = draw(random, kReduceOps);
    if (!options.data_type) call.data_type = draw(random, oracle_types());
    if (options.reduce_op) op = *options.reduce_op;
  }
  if (is_reduction(call.kind)) call.reduce_op = op;
  if (has_root(call.kind)) {
    call.root = static_cast<uint32_t>(random.below(options.cluster.ranks));
  }
  call.count = is_drawn ? draw_count(random, options.count) : options.count;
  call.is_uneven = is_drawn && random.chance(0.3);
  call.is_in_place = may_be_in_place(call.kind) && random.chance(0.3);
  call.seed = random.next();
  return call;
}

// Runs the calls on every rank, `concurrent` at a time, each rank late in its own way.
class Job {
 public:
  explicit Job(const ScenarioOptions& options)
      : options_(options),
        random_(~options.cluster.seed),
        cluster_(options.cluster),
        ranks_(options.cluster.ranks) {
    for (uint32_t i = 0; i < options.operations; ++i) {
      runs_.push_back(std::make_unique<CallRun>(draw_call(options, random_), cluster_.size()));
    }
  }

  ScenarioReport run();

 private:
  struct RankState {
    uint32_t scheduled = 0;  // calls that will start or have started
    uint32_t completed = 0;  // calls that are done
    Instant starts_at;       // when the last scheduled call starts
  };

  void schedule_next(uint32_t rank);
  void start(uint32_t rank, uint32_t index);
  void on_done(uint32_t rank, uint32_t index, const collective::Operation& operation);
  bool is_done() const;
  bool is_drained();
  void check_storm(ScenarioReport& report) const;
  void fail(std::string what) {
    constexpr size_t kFailuresMax = 16;
    if (failures_.size() < kFailuresMax) failures_.push_back(std::move(what));
  }

  const ScenarioOptions& options_;
  base::Random random_;  // of the calls and of who is late
  Cluster cluster_;
  std::vector<RankState> ranks_;
  std::vector<std::unique_ptr<CallRun>> runs_;  // the calls, in order
  std::vector<std::string> failures_;
};

void Job::schedule_next(uint32_t rank) {
  RankState& state = ranks_[rank];
  while (state.scheduled < runs_.size() &&
         state.scheduled < state.completed + options_.concurrent) {
    const uint32_t index = state.scheduled++;
    const auto late = random_.below(static_cast<uint64_t>(options_.skew.nanos()) + 1);
    const Instant at = cluster_.now() + Duration::nanos(static_cast<int64_t>(late));
    state.starts_at = std::max(state.starts_at, at);  // calls keep their order
    cluster_.at(state.starts_at, [this, rank, index] { start(rank, index); });
  }
}

void Job::start(uint32_t rank, uint32_t index) {
  CallRun& run = *runs_[index];
  cluster_.audit().add_canary(run.input(rank));
  const auto operation = run.make_operation(cluster_.world(rank), Instant() + options_.time_limit);
  operation->on_done = [this, rank, index, raw = operation.get()] { on_done(rank, index, *raw); };
  cluster_.start(rank, operation);
}

void Job::on_done(uint32_t rank, uint32_t index, const collective::Operation& operation) {
  const std::string who = "rank " + std::to_string(rank) + ", operation " + std::to_string(index) +
                          " (" + describe(runs_[index]->call()) + "): ";
  if (operation.error) {
    fail(who + operation.error->message);
  } else if (const auto wrong = runs_[index]->check(rank)) {
    fail(who + *wrong);
  }
  ++ranks_[rank].completed;
  schedule_next(rank);
}

bool Job::is_done() const {
  return std::all_of(ranks_.begin(), ranks_.end(),
                     [&](const RankState& rank) { return rank.completed == runs_.size(); });
}

bool Job::is_drained() {
  for (uint32_t rank = 0; rank < cluster_.size(); ++rank) {
    if (!cluster_.engine(rank).is_idle() || !cluster_.engine(rank).endpoint().is_drained()) {
      return false;
    }
  }
  return true;
}

void Job::check_storm(ScenarioReport& report) const {
  const uint64_t payload = report.traffic.message_bytes_received;
  const auto seconds = static_cast<uint64_t>(cluster_.now().nanos() / 1'000'000'000 + 1);
  const uint64_t pairs = uint64_t{cluster_.size()} * cluster_.size();
  const uint64_t allowed =
      kAmplificationMax * payload + kSmallBytesMax + kIdleBytesPerSecondMax * seconds * pairs;
  if (report.traffic.bytes_sealed > allowed) {
    report.failures.push_back("a storm: " + std::to_string(report.traffic.bytes_sealed) +
                              " bytes were sent for " + std::to_string(payload) +
                              " bytes of payload");
  }
}

ScenarioReport Job::run() {
  // The operations' own deadline comes first: their errors say who was waited for.
  const Instant deadline = Instant() + options_.time_limit + Duration::seconds(1);
  for (uint32_t rank = 0; rank < cluster_.size(); ++rank) schedule_next(rank);
  const bool is_complete = cluster_.run_until([this] { return is_done(); }, deadline);
  ScenarioReport report;
  report.virtual_time = cluster_.now() - Instant();
  if (is_complete && failures_.empty()) {
    const Instant drained_by = cluster_.now() + kDrainTime;
    if (!cluster_.run_until([this] { return is_drained(); }, drained_by)) {
      fail("the engines did not drain after the last operation");
    }
  }
  report.trace_hash = cluster_.trace_hash();
  report.traffic = cluster_.traffic();
  report.drops = cluster_.drops();
  report.links = cluster_.link_counters();
  report.suite = cluster_.suite();
  report.recording = cluster_.audit().take_recording();
  report.key_log = cluster_.key_log();
  report.failures = failures_;
  for (const std::string& violation : cluster_.violations()) report.failures.push_back(violation);
  if (!cluster_.breakdown().empty()) report.failures.push_back(cluster_.breakdown());
  if (!is_complete && report.failures.empty()) {
    report.failures.push_back("not complete by the virtual time limit");
  }
  check_storm(report);
  return report;
}

}  // namespace

base::Status check_options(const ScenarioOptions& options) {
  const ClusterOptions& cluster = options.cluster;
  const LinkOptions& link = cluster.link;
  const auto within = [](auto value, auto low, auto high) { return value >= low && value <= high; };
  const auto refuse = [](const char* what) {
    return base::Error{base::ErrorCode::kConfig, std::string("cannot simulate: ") + what};
  };
  constexpr uint32_t kRanksMax = 4'096;
  constexpr uint64_t kCountMax = uint64_t{1} << 28;
  if (!within(cluster.ranks, 1u, kRanksMax)) return refuse("ranks must be 1 to 4096");
  if (options.count > kCountMax) return refuse("count must be at most 2^28");
  if (options.operations < 1 || options.concurrent < 1) {
    return refuse("operations and concurrent must be at least 1");
  }
  if (!within(cluster.sockets_per_rank, size_t{1}, transport::kSocketsMax) ||
      !within(cluster.paths_per_peer, size_t{1}, transport::kPathsPerPeerMax)) {
    return refuse("sockets and paths must be 1 to 256");
  }
  constexpr unsigned kGenerationBitsMin = 5;  // fewer packets than are in flight: keys run away
  if (!within(cluster.generation_bits, kGenerationBitsMin, ClusterOptions{}.generation_bits)) {
    return refuse("generation bits must be 5 to 22");
  }
  if (!within(cluster.datagram_bytes_max, transport::kDatagramBytesMin,
              transport::kDatagramBytesMax)) {
    return refuse("datagram bytes must be 1200 to 8960");
  }
  for (const double chance : {link.loss, link.reorder, link.duplicate, link.corrupt}) {
    if (!within(chance, 0.0, 1.0)) return refuse("probabilities must be between 0 and 1");
  }
  if (link.latency <= Duration()) return refuse("the latency must be more than 0");
  for (const Duration duration :
       {link.jitter, link.reorder_delay, link.loss_burst, options.skew, options.time_limit}) {
    if (duration < Duration()) return refuse("durations must not be negative");
  }
  const auto draws_type = !options.data_type.has_value();
  const DataType type = options.data_type.value_or(DataType::kFloat32);
  const bool has_op = options.reduce_op.has_value();
  if (has_op && !draws_type && !may_reduce(*options.reduce_op, type, options)) {
    return refuse("this reduce operator has no exact result on this type and number of ranks");
  }
  const bool is_possible = has_op ? is_exact(*options.reduce_op, type, cluster.ranks)
                                  : is_exact(ReduceOp::kSum, type, cluster.ranks);
  if (!is_possible) return refuse("results would not be exact on so many ranks");
  return base::ok_status();
}

ScenarioReport run_scenario(const ScenarioOptions& options) {
  return Job(options).run();
}

}  // namespace securefabric::sim
