#include "sim/scenario.h"

#include <algorithm>
#include <array>
#include <memory>
#include <numeric>

#include "base/random.h"
#include "sim/elements.h"
#include "sim/scenario_knobs.h"

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
// How often the drain is looked at: looking costs time for every peer of every rank.
constexpr Duration kDrainStep = Duration::millis(20);
constexpr uint64_t kWarmUpCountMax = 256;

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

uint32_t job_size(const ScenarioOptions& options) {
  return options.cluster.ranks / options.jobs;
}

bool may_reduce(ReduceOp op, DataType type, const ScenarioOptions& options) {
  return is_defined(op, type) && is_exact(op, type, job_size(options));
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
    call.root = static_cast<uint32_t>(random.below(job_size(options)));
  }
  call.count = is_drawn ? draw_count(random, options.count) : options.count;
  call.is_uneven = is_drawn && random.chance(0.3);
  call.is_in_place = may_be_in_place(call.kind) && random.chance(0.3);
  call.seed = random.next();
  return call;
}

std::vector<Call> draw_calls(const ScenarioOptions& options, base::Random& random) {
  std::vector<Call> calls;
  for (uint32_t i = 0; i < options.operations; ++i) calls.push_back(draw_call(options, random));
  if (options.has_warm_up) {
    Call first = calls.front();
    first.count = std::min(first.count, kWarmUpCountMax);
    calls.insert(calls.begin(), first);
  }
  return calls;
}

// Runs the calls on every rank, `concurrent` at a time, each rank late in its own way.
class Runner {
 public:
  explicit Runner(const ScenarioOptions& options);
  ScenarioReport run();

 private:
  // The ranks that call collectives together: consecutive ones.
  struct Job {
    std::vector<std::shared_ptr<collective::Group>> groups;  // as each of its ranks holds it
    std::vector<Call> calls;                                 // in order
    std::vector<std::unique_ptr<CallRun>> runs;              // of each call that some rank is in
    std::vector<uint32_t> done;                              // ranks that have completed each call
    uint32_t ranks_left = 0;                                 // not complete
  };
  struct RankState {
    uint32_t scheduled = 0;  // calls that will start or have started
    uint32_t completed = 0;  // calls that are done
    Instant starts_at;       // when the last scheduled call starts
  };

  Job& job_of(uint32_t rank) { return jobs_[rank / job_size(options_)]; }
  uint32_t index_of(uint32_t rank) const { return rank % job_size(options_); }
  // Calls that are made before what is measured.
  uint32_t warm_up_calls() const { return options_.has_warm_up ? 1 : 0; }
  Duration since_begin() const { return cluster_.now() - Instant() - report_.began_at; }

  void schedule_next(uint32_t rank);
  void start(uint32_t rank, uint32_t index);
  void on_done(uint32_t rank, uint32_t index, const collective::Operation& operation);
  void begin();
  void on_rank_complete(uint32_t rank);
  void take_sample();
  bool is_drained();
  void drain();
  void check_storm();
  void fill_report();
  void fail(std::string what) {
    constexpr size_t kFailuresMax = 16;
    if (report_.failures.size() < kFailuresMax) report_.failures.push_back(std::move(what));
  }

  const ScenarioOptions& options_;
  base::Random random_;  // of the calls and of who is late
  Cluster cluster_;
  Duration time_limit_;  // of the operations
  std::vector<Job> jobs_;
  std::vector<RankState> ranks_;
  uint32_t warm_ups_left_;       // ranks that have not done the warm-up
  uint32_t jobs_left_;           // not complete
  uint64_t bytes_at_begin_ = 0;  // payload that arrived during the warm-up
  ScenarioReport report_;
};

Runner::Runner(const ScenarioOptions& options)
    : options_(options),
      random_(~options.cluster.seed),
      cluster_(options.cluster),
      time_limit_(options.heal_at > Duration() ? options.heal_at + options.heal_limit
                                               : options.time_limit),
      jobs_(options.jobs),
      ranks_(options.cluster.ranks),
      warm_ups_left_(options.has_warm_up ? options.cluster.ranks : 0),
      jobs_left_(options.jobs) {
  const uint32_t size = job_size(options);
  for (uint32_t i = 0; i < options.jobs; ++i) {
    Job& job = jobs_[i];
    job.ranks_left = size;
    job.calls = draw_calls(options, random_);
    job.runs.resize(job.calls.size());
    job.done.resize(job.calls.size());
    std::vector<uint32_t> ranks(size);
    std::iota(ranks.begin(), ranks.end(), i * size);
    job.groups = cluster_.make_group("job " + std::to_string(i), ranks);
  }
  for (const LinkEvent& event : options.events) cluster_.script(event);
  if (options.heal_at > Duration()) cluster_.script_healing(Instant() + options.heal_at);
}

void Runner::schedule_next(uint32_t rank) {
  RankState& state = ranks_[rank];
  // Nobody goes on before all have warmed up.
  const uint32_t end = warm_ups_left_ > 0 ? 1 : static_cast<uint32_t>(job_of(rank).calls.size());
  while (state.scheduled < end && state.scheduled < state.completed + options_.concurrent) {
    const uint32_t index = state.scheduled++;
    const auto late = random_.below(static_cast<uint64_t>(options_.skew.nanos()) + 1);
    const Instant at = cluster_.now() + Duration::nanos(static_cast<int64_t>(late));
    state.starts_at = std::max(state.starts_at, at);  // calls keep their order
    cluster_.at(state.starts_at, [this, rank, index] { start(rank, index); });
  }
}

void Runner::start(uint32_t rank, uint32_t index) {
  Job& job = job_of(rank);
  if (!job.runs[index]) {
    job.runs[index] = std::make_unique<CallRun>(job.calls[index], job_size(options_));
  }
  CallRun& run = *job.runs[index];
  cluster_.audit().add_canary(run.input(index_of(rank)));
  const auto operation = run.make_operation(job.groups[index_of(rank)], Instant() + time_limit_);
  operation->on_done = [this, rank, index, raw = operation.get()] { on_done(rank, index, *raw); };
  cluster_.start(rank, operation);
}

void Runner::on_done(uint32_t rank, uint32_t index, const collective::Operation& operation) {
  Job& job = job_of(rank);
  const auto who = [&] {
    return "rank " + std::to_string(rank) + ", operation " + std::to_string(index) + " (" +
           describe(job.calls[index]) + "): ";
  };
  if (operation.error) {
    fail(who() + operation.error->message);
  } else if (const auto wrong = job.runs[index]->check(index_of(rank))) {
    fail(who() + *wrong);
  }
  if (++job.done[index] == job_size(options_)) job.runs[index].reset();
  ++ranks_[rank].completed;
  if (index < warm_up_calls()) {
    if (--warm_ups_left_ == 0) begin();
    return;
  }
  report_.completions.push_back(since_begin());
  if (ranks_[rank].completed == job.calls.size()) on_rank_complete(rank);
  schedule_next(rank);
}

// The warm-up is over, or there was none: what is measured begins.
void Runner::begin() {
  report_.began_at = cluster_.now() - Instant();
  bytes_at_begin_ = cluster_.traffic().message_bytes_received;
  for (uint32_t rank = 0; rank < cluster_.size(); ++rank) schedule_next(rank);
}

void Runner::on_rank_complete(uint32_t rank) {
  if (--job_of(rank).ranks_left > 0) return;
  if (--jobs_left_ == 0) {
    report_.virtual_time = since_begin();
    report_.payload_bytes = cluster_.traffic().message_bytes_received - bytes_at_begin_;
  }
  if (!report_.contended_bytes.empty()) return;
  report_.contended_bytes.resize(options_.jobs);
  for (uint32_t each = 0; each < cluster_.size(); ++each) {
    report_.contended_bytes[each / job_size(options_)] +=
        cluster_.engine(each).endpoint().traffic().message_bytes_received;
  }
}

void Runner::take_sample() {
  if (jobs_left_ == 0 || report_.samples.size() == ScenarioReport::kSamplesMax) return;
  const transport::TrafficCounters traffic = cluster_.traffic();
  Sample sample{cluster_.now() - Instant(),
                traffic.message_bytes_received,
                traffic.bytes_resent,
                traffic.packets_lost,
                {},
                {}};
  for (const auto& [key, link] : cluster_.network().links()) {
    if (sample.link_bytes.size() == ScenarioReport::kLinksMax) break;
    sample.link_bytes.emplace_back(key, link->counters().bytes);
  }
  for (const auto& [peer, paths] : cluster_.engine(0).endpoint().paths()) {
    for (const transport::PathReport& path : paths) {
      if (sample.paths.size() == ScenarioReport::kPathsSampled) break;
      sample.paths.push_back({peer.value, path.id.sender_socket(), path.id.receiver_socket(),
                              path.state, path.srtt_us, path.window_bytes});
    }
  }
  report_.samples.push_back(std::move(sample));
  cluster_.after(options_.sample_every, [this] { take_sample(); });
}

bool Runner::is_drained() {
  for (uint32_t rank = 0; rank < cluster_.size(); ++rank) {
    if (!cluster_.engine(rank).is_idle() || !cluster_.engine(rank).endpoint().is_drained()) {
      return false;
    }
  }
  return true;
}

void Runner::drain() {
  const Instant drained_by = cluster_.now() + kDrainTime;
  while (!is_drained()) {
    if (cluster_.now() >= drained_by) {
      return fail("the engines did not drain after the last operation");
    }
    cluster_.run_for(kDrainStep);
    if (!cluster_.is_sound()) return;
  }
}

void Runner::check_storm() {
  const uint64_t payload = report_.traffic.message_bytes_received;
  const auto seconds = static_cast<uint64_t>(cluster_.now().nanos() / 1'000'000'000 + 1);
  const uint64_t pairs = uint64_t{cluster_.size()} * cluster_.size();
  const uint64_t allowed =
      kAmplificationMax * payload + kSmallBytesMax + kIdleBytesPerSecondMax * seconds * pairs;
  if (report_.traffic.bytes_sealed > allowed) {
    fail("a storm: " + std::to_string(report_.traffic.bytes_sealed) + " bytes were sent for " +
         std::to_string(payload) + " bytes of payload");
  }
}

void Runner::fill_report() {
  report_.trace_hash = cluster_.trace_hash();
  report_.traffic = cluster_.traffic();
  report_.drops = cluster_.drops();
  report_.links = cluster_.link_counters();
  report_.socket_drops = cluster_.socket_drops();
  report_.suite = cluster_.suite();
  report_.recording = cluster_.audit().take_recording();
  report_.key_log = cluster_.key_log();
  report_.network_bytes_max = cluster_.network_bytes_max();
  for (uint32_t rank = 0; rank < cluster_.size(); ++rank) {
    report_.connections += cluster_.engine(rank).endpoint().paths().size();
  }
  if (cluster_.network().links().size() > ScenarioReport::kLinksMax) return;
  for (const auto& [key, link] : cluster_.network().links()) {
    report_.by_link.push_back({key, link->counters()});
  }
}

ScenarioReport Runner::run() {
  // The operations' own deadline comes first: their errors say who was waited for.
  const Instant deadline = Instant() + time_limit_ + Duration::seconds(1);
  for (uint32_t rank = 0; rank < cluster_.size(); ++rank) schedule_next(rank);
  if (options_.sample_every > Duration()) cluster_.at(Instant(), [this] { take_sample(); });
  const bool is_complete = cluster_.run_until([this] { return jobs_left_ == 0; }, deadline);
  if (!is_complete) report_.virtual_time = since_begin();
  if (is_complete && report_.failures.empty()) drain();
  fill_report();
  for (const std::string& violation : cluster_.violations()) report_.failures.push_back(violation);
  if (!cluster_.breakdown().empty()) report_.failures.push_back(cluster_.breakdown());
  if (!is_complete && report_.failures.empty()) fail("not complete by the virtual time limit");
  check_storm();
  return std::move(report_);
}

}  // namespace

base::Status check_options(const ScenarioOptions& options) {
  const auto refuse = [](const std::string& what) {
    return base::Error{base::ErrorCode::kConfig, "cannot simulate: " + what};
  };
  for (const ScenarioKnob& knob : scenario_knobs()) {
    const double value = knob.read(options);
    if (!(value >= knob.min && value <= knob.max)) return refuse(describe_bounds(knob));
  }
  for (const LinkEvent& event : options.events) {
    if (const std::string wrong = find_wrong(event, options); !wrong.empty()) {
      return refuse("event '" + event_text(event) + "': " + wrong);
    }
  }
  const uint32_t ranks = options.cluster.ranks;
  if (ranks % options.jobs != 0) {
    return refuse(std::to_string(ranks) + " ranks cannot be divided into " +
                  std::to_string(options.jobs) + " equal jobs");
  }
  if (options.cluster.network.is_shared && options.cluster.network.parallel_links == 0) {
    return refuse("shared links must be counted: give parallel_links");
  }
  const auto draws_type = !options.data_type.has_value();
  const DataType type = options.data_type.value_or(DataType::kFloat32);
  const bool has_op = options.reduce_op.has_value();
  if (has_op && !draws_type && !may_reduce(*options.reduce_op, type, options)) {
    return refuse("this reduce operator has no exact result on this type and number of ranks");
  }
  const bool is_possible =
      is_exact(has_op ? *options.reduce_op : ReduceOp::kSum, type, job_size(options));
  if (!is_possible) return refuse("results would not be exact on so many ranks");
  return base::ok_status();
}

ScenarioReport run_scenario(const ScenarioOptions& options) {
  return Runner(options).run();
}

}  // namespace securefabric::sim
