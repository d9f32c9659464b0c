#include "sim/soak.h"

#include <algorithm>

#include "base/random.h"

namespace securefabric::sim {

using base::Duration;
using base::Rank;

namespace {

constexpr uint64_t kMegabit = 1'000'000;
// All links may be down at once, and no peer may be lost for that.
constexpr int64_t kHealBeforeMs = 4'000;
// The slowest network that is drawn needs half a minute for the largest job.
constexpr Duration kHealLimit = Duration::seconds(120);

class Draw {
 public:
  explicit Draw(uint64_t seed) : random_(seed) {}

  ScenarioOptions scenario(uint64_t seed) {
    ScenarioOptions options;
    options.cluster.seed = seed;
    draw_job(options);
    draw_rank(options.cluster);
    draw_link(options.cluster.link);
    draw_network(options.cluster);
    options.heal_at = Duration::millis(between(200, kHealBeforeMs));
    options.heal_limit = kHealLimit;
    const int64_t events = chance(0.6) ? between(1, 4) : 0;
    for (int64_t i = 0; i < events; ++i) options.events.push_back(draw_event(options));
    draw_epochs(options.cluster.epoch_limits);
    return options;
  }

 private:
  bool chance(double probability) { return random_.chance(probability); }
  int64_t between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random_.below(static_cast<uint64_t>(high - low + 1)));
  }
  // 0 in half of the cases, else up to `most`.
  double maybe(double most) {
    return chance(0.5) ? most * static_cast<double>(between(1, 100)) / 100 : 0;
  }

  void draw_job(ScenarioOptions& options) {
    options.cluster.ranks = static_cast<uint32_t>(between(2, chance(0.2) ? 12 : 6));
    if (options.cluster.ranks % 2 == 0 && chance(0.1)) options.jobs = 2;
    options.operations = static_cast<uint32_t>(between(1, 12));
    options.concurrent = static_cast<uint32_t>(between(1, 4));
    options.count = chance(0.2) ? 100'000 : 10'000;
  }

  void draw_rank(ClusterOptions& cluster) {
    cluster.sockets_per_rank = static_cast<size_t>(between(1, 4));
    cluster.paths_per_peer = static_cast<size_t>(between(1, 8));
    if (chance(0.5)) cluster.datagram_bytes_max = transport::kDatagramBytesMin;
    if (chance(0.2)) cluster.datagram_bytes_max = transport::kDatagramBytesMax;
    if (chance(0.3)) cluster.burst_segments_max = static_cast<size_t>(between(1, 8));
    if (chance(0.3)) cluster.generation_bits = static_cast<unsigned>(between(6, 10));
    HostOptions& host = cluster.host;
    if (chance(0.3)) host.socket_buffer_bytes = static_cast<uint64_t>(between(30'000, 500'000));
    if (chance(0.3)) {
      host.call_cost = Duration::nanos(between(0, 5'000));
      host.datagram_cost = Duration::nanos(between(0, 1'000));
      host.byte_cost_ns = static_cast<double>(between(0, 10)) / 10;
    }
  }

  void draw_epochs(transport::EpochLimits& limits) {
    if (chance(0.4)) limits.bytes = static_cast<uint64_t>(between(10'000, 1'000'000));
    // Never so young that a change is always under way: nothing would ever be drained.
    if (chance(0.2)) limits.age = Duration::millis(between(200, 4'000));
  }

  void draw_link(LinkOptions& link) {
    link.loss = maybe(0.3);
    if (chance(0.2)) link.loss_burst = Duration::millis(5);
    if (chance(0.2)) {
      link.bad_begin = 0.02;
      link.bad_end = 1.0 / static_cast<double>(between(2, 30));
      link.bad_loss = static_cast<double>(between(5, 10)) / 10;
    }
    link.reorder = maybe(0.3);
    link.duplicate = maybe(0.3);
    link.corrupt = maybe(0.05);
    link.truncate = maybe(0.05);
    link.latency = Duration::micros(between(5, 3'000));
    link.jitter = Duration::micros(between(0, 2'000));
    link.reorder_delay = Duration::micros(between(0, 5'000));
    if (chance(0.4)) draw_queue(link);
  }

  void draw_queue(LinkOptions& link) {
    link.rate_bits_per_second = static_cast<uint64_t>(between(50, 1'000)) * kMegabit;
    if (chance(0.5)) link.queue_bytes_max = 64 * 1024;
    if (chance(0.3)) link.mark_above_bytes = 30'000;
  }

  void draw_network(ClusterOptions& cluster) {
    if (chance(0.4)) {
      cluster.network.parallel_links = static_cast<uint32_t>(between(1, 6));
      cluster.network.is_shared = chance(0.4);
    }
    if (chance(0.2)) draw_queue(cluster.network.receiver_port);
    if (chance(0.2)) draw_queue(cluster.network.sender_port);
  }

  LinkSelector draw_links(const ClusterOptions& cluster) {
    LinkSelector links;
    const NetworkOptions& network = cluster.network;
    if (network.receiver_port.rate_bits_per_second > 0 && chance(0.2)) {
      links.hop = Hop::kReceiverPort;
      if (chance(0.5)) links.to = Rank{static_cast<uint32_t>(between(0, cluster.ranks - 1))};
      return links;
    }
    const size_t count = network.parallel_links > 0
                             ? network.parallel_links
                             : cluster.sockets_per_rank * cluster.sockets_per_rank;
    if (chance(0.7)) links.index = static_cast<uint32_t>(random_.below(count));
    if (chance(0.4)) {
      links.from = Rank{static_cast<uint32_t>(between(0, cluster.ranks - 1))};
      links.to = Rank{(links.from->value + 1) % cluster.ranks};
    }
    return links;
  }

  LinkEvent draw_event(const ScenarioOptions& options) {
    LinkEvent event;
    const int64_t last_ms = options.heal_at.millis();
    // Most jobs are done soon.
    event.at = Duration::millis(between(0, chance(0.7) ? 30 : last_ms / 2));
    event.links = draw_links(options.cluster);
    const auto set = [&event](const char* knob, double value) {
      event.settings.push_back({find_link_knob(knob), value});
    };
    switch (between(0, 6)) {
      case 0: set("down", 1); break;
      case 1:
        event.flap = Duration::millis(between(5, 500));
        event.until = Duration::millis(between(last_ms / 2 + 1, last_ms));
        break;
      case 2: set("mtu", static_cast<double>(between(100, 9'000))); break;
      case 3: set("loss", static_cast<double>(between(1, 10)) / 10); break;
      case 4: set("latency_us", static_cast<double>(between(5, 50'000))); break;
      case 5: set("rate_mbit", static_cast<double>(between(1, 100))); break;
      default: set("corrupt", static_cast<double>(between(1, 10)) / 10); break;
    }
    if (chance(0.3) && event.flap == Duration()) {
      event.ramp = Duration::millis(between(1, last_ms / 2));
    }
    return event;
  }

  base::Random random_;
};

}  // namespace

ScenarioOptions draw_scenario(uint64_t seed) {
  return Draw(seed).scenario(seed);
}

}  // namespace securefabric::sim
