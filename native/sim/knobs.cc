#include "sim/knobs.h"

#include <cmath>

namespace securefabric::sim {

using base::Duration;

namespace {

constexpr double kMicrosMax = 1e9;  // a quarter of an hour
constexpr double kBytesMax = 1e12;

// One kind of field each; captures would not fit a function pointer.
template <auto Field>
constexpr LinkKnob chance(const char* name, const char* help) {
  return {name,
          help,
          1.0,
          false,
          [](const LinkOptions& o) { return o.*Field; },
          [](LinkOptions& o, double value) { o.*Field = value; }};
}

template <auto Field>
constexpr LinkKnob micros(const char* name, const char* help) {
  return {name,
          help,
          kMicrosMax,
          false,
          [](const LinkOptions& o) { return static_cast<double>((o.*Field).nanos()) / 1e3; },
          [](LinkOptions& o, double value) {
            o.*Field = Duration::nanos(static_cast<int64_t>(std::llround(value * 1e3)));
          }};
}

template <auto Field>
constexpr LinkKnob bytes(const char* name, const char* help) {
  return {name,
          help,
          kBytesMax,
          true,
          [](const LinkOptions& o) { return static_cast<double>(o.*Field); },
          [](LinkOptions& o, double value) { o.*Field = static_cast<uint64_t>(value); }};
}

constexpr LinkKnob kKnobs[] = {
    {"rate_mbit", "megabits per second; 0: no limit, and no queue", 1e6, false,
     [](const LinkOptions& o) { return static_cast<double>(o.rate_bits_per_second) / 1e6; },
     [](LinkOptions& o, double value) {
       o.rate_bits_per_second = static_cast<uint64_t>(std::llround(value * 1e6));
     }},
    {"latency_us", "one way", kMicrosMax, false,
     [](const LinkOptions& o) { return static_cast<double>(o.latency.nanos()) / 1e3; },
     [](LinkOptions& o, double value) {
       o.latency = Duration::nanos(static_cast<int64_t>(std::llround(value * 1e3)));
     },
     0.001},
    micros<&LinkOptions::jitter>("jitter_us", "extra delay up to this; order is kept"),
    bytes<&LinkOptions::queue_bytes_max>("queue_bytes", "wait for the rate; more is dropped"),
    bytes<&LinkOptions::mark_above_bytes>("mark_bytes",
                                          "queue from which on datagrams are marked CE; 0: never"),
    chance<&LinkOptions::loss>("loss", "lost"),
    micros<&LinkOptions::loss_burst>("loss_burst_us",
                                     "after a loss, all that is sent within this is lost too"),
    chance<&LinkOptions::bad_begin>("bad_begin", "a burst of losses begins (Gilbert-Elliott)"),
    chance<&LinkOptions::bad_end>("bad_end", "it ends"),
    chance<&LinkOptions::bad_loss>("bad_loss", "lost, during it"),
    chance<&LinkOptions::reorder>("reorder", "held back, so that later ones overtake"),
    micros<&LinkOptions::reorder_delay>("reorder_us", "for so long"),
    chance<&LinkOptions::duplicate>("duplicate", "delivered twice, reorder_us apart"),
    chance<&LinkOptions::corrupt>("corrupt", "one bit flipped"),
    chance<&LinkOptions::truncate>("truncate", "cut short"),
    bytes<&LinkOptions::mtu_bytes>("mtu", "bytes of the largest datagram that passes"),
    {"down", "1: everything vanishes, and nobody is told", 1, true,
     [](const LinkOptions& o) { return o.is_blackhole ? 1.0 : 0.0; },
     [](LinkOptions& o, double value) { o.is_blackhole = value != 0; }},
};

}  // namespace

std::span<const LinkKnob> link_knobs() {
  return kKnobs;
}

const LinkKnob* find_link_knob(std::string_view name) {
  for (const LinkKnob& knob : kKnobs) {
    if (name == knob.name) return &knob;
  }
  return nullptr;
}

}  // namespace securefabric::sim
