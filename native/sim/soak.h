// Random weather: a scenario drawn from a seed, with every kind of fault there is.
#pragma once

#include "sim/scenario.h"

namespace securefabric::sim {

// Faults of links, hosts and topologies, each with a probability of its own, and events while the
// job runs. Everything heals in the end, and then the job must complete: `python -m
// securefabric.simulate soak --seed N` runs it.
ScenarioOptions draw_scenario(uint64_t seed);

}  // namespace securefabric::sim
