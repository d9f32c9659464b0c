// Random weather, a few seeds of it; `make soak` runs a thousand.
#include "sim/soak.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>

#include "sim/scenario_knobs.h"

namespace securefabric::sim {
namespace {

TEST(Soak, draw__can_be_simulated_and_uses_every_kind_of_fault) {
  std::vector<ScenarioOptions> drawn;
  for (uint64_t seed = 0; seed < 500; ++seed) {
    drawn.push_back(draw_scenario(seed));
    const base::Status status = check_options(drawn.back());
    EXPECT_TRUE(status.ok()) << seed << ": " << status.error().message;
    EXPECT_EQ(drawn.back().cluster.seed, seed);
  }
  const auto some = [&](auto has) {
    const auto count = std::count_if(drawn.begin(), drawn.end(), has);
    return count > 10 && count < 490;
  };
  for (const char* flag :
       {"loss", "loss_burst_us", "bad_begin", "reorder", "duplicate", "corrupt", "truncate",
        "rate_mbit", "mark_bytes", "parallel_links", "shared", "in_rate_mbit", "out_rate_mbit",
        "socket_buffer_bytes", "byte_cost_ns"}) {
    EXPECT_TRUE(some([&](const ScenarioOptions& options) {
      for (const ScenarioKnob& knob : scenario_knobs()) {
        if (knob.flag == flag) return knob.read(options) > 0;
      }
      return false;
    })) << flag;
  }
  for (const char* key : {"down=", "flap_ms=", "mtu=", "loss=", "latency_us=", "rate_mbit=",
                          "ramp_ms=", "link=", "from=", "where=in"}) {
    EXPECT_TRUE(some([&](const ScenarioOptions& options) {
      return std::any_of(options.events.begin(), options.events.end(), [&](const LinkEvent& e) {
        return event_text(e).find(key) != std::string::npos;
      });
    })) << key;
  }
}

TEST(Soak, any_mix_of_faults_never_changes_a_result__seeds_from_the_environment) {
  const char* wanted = std::getenv("SECUREFABRIC_SIM_SEEDS");
  const uint64_t seeds = wanted == nullptr ? 40 : std::strtoull(wanted, nullptr, 10);
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    const ScenarioReport report = run_scenario(draw_scenario(seed));
    std::string failures;
    for (const std::string& failure : report.failures) failures += "  " + failure + "\n";
    EXPECT_TRUE(report.ok()) << "seed " << seed << " fails:\n"
                             << failures << "replay: python -m securefabric.simulate soak --seed "
                             << seed;
  }
}

}  // namespace
}  // namespace securefabric::sim
