#include "sim/knobs.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

namespace securefabric::sim {
namespace {

TEST(Knobs, each__writes_what_it_reads_and_nothing_else) {
  std::set<std::string> names;
  for (const LinkKnob& knob : link_knobs()) {
    EXPECT_TRUE(names.insert(knob.name).second) << knob.name;
    EXPECT_EQ(find_link_knob(knob.name), &knob);
    LinkOptions options;
    const double usual = knob.read(options);
    EXPECT_TRUE(usual >= knob.min && usual <= knob.max) << knob.name;
    const double other = usual == 1 ? 0 : 1;
    knob.write(options, other);
    EXPECT_EQ(knob.read(options), other) << knob.name;
    for (const LinkKnob& beside : link_knobs()) {
      if (&beside == &knob) continue;
      EXPECT_EQ(beside.read(options), beside.read(LinkOptions{})) << knob.name << beside.name;
    }
  }
  EXPECT_EQ(find_link_knob("rate"), nullptr);
}

TEST(Knobs, write__keeps_the_unit) {
  LinkOptions options;
  find_link_knob("rate_mbit")->write(options, 2.5);
  find_link_knob("latency_us")->write(options, 0.5);
  find_link_knob("down")->write(options, 1);
  EXPECT_EQ(options.rate_bits_per_second, 2'500'000u);
  EXPECT_EQ(options.latency, base::Duration::nanos(500));
  EXPECT_TRUE(options.is_blackhole);
}

}  // namespace
}  // namespace securefabric::sim
