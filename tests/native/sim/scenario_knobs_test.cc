#include "sim/scenario_knobs.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

namespace securefabric::sim {
namespace {

TEST(ScenarioKnobs, each__writes_what_it_reads) {
  std::set<std::string> flags;
  for (const ScenarioKnob& knob : scenario_knobs()) {
    EXPECT_TRUE(flags.insert(knob.flag).second) << knob.flag;
    EXPECT_FALSE(knob.help.empty());
    const double usual = knob.read(ScenarioOptions{});
    EXPECT_TRUE(usual >= knob.min && usual <= knob.max) << knob.flag << " " << usual;
    for (const double value : {knob.min, knob.max}) {
      ScenarioOptions options;
      EXPECT_TRUE(set_knob(options, knob.flag, value).ok()) << knob.flag;
      EXPECT_DOUBLE_EQ(knob.read(options), value) << knob.flag;
    }
  }
}

TEST(ScenarioKnobs, set__refuses_what_is_out_of_bounds_and_says_the_bounds) {
  ScenarioOptions options;
  EXPECT_EQ(set_knob(options, "loss", 1.5).error().message, "loss must be 0 to 1, not 1.5");
  EXPECT_EQ(set_knob(options, "ranks", 2.5).error().message,
            "ranks must be a whole number, 1 to 4096, not 2.5");
  EXPECT_EQ(set_knob(options, "in_rate", 1).error().message, "no setting is named 'in_rate'");
  EXPECT_FALSE(set_knob(options, "latency_us", std::nan("")).ok());
  EXPECT_EQ(options.cluster.link.loss, 0);
}

TEST(ScenarioKnobs, text_of__shortest_that_reads_back) {
  EXPECT_EQ(text_of(0.1), "0.1");
  EXPECT_EQ(text_of(4194304), "4194304");
  EXPECT_EQ(text_of(1.0 / 3), "0.3333333333333333");
}

TEST(EventText, parse__every_key_and_back) {
  for (const char* text :
       {"at_ms=500 link=1 from=0 to=1 down=1", "at_ms=0 loss=0.25 latency_us=100 ramp_ms=20.5",
        "at_ms=10 where=in to=3 rate_mbit=100", "at_ms=10 where=out from=3 mtu=1400",
        "at_ms=100 link=2 flap_ms=40 until_ms=900"}) {
    const auto event = parse_event(text);
    ASSERT_TRUE(event.ok()) << event.error().message;
    EXPECT_EQ(event_text(event.value()), text);
  }
}

TEST(EventText, parse__says_what_is_wrong) {
  const auto message = [](const char* text) { return parse_event(text).error().message; };
  EXPECT_EQ(message("now"), "event 'now': 'now' is not key=value");
  EXPECT_EQ(message("at_ms=x"), "event 'at_ms=x': at_ms must be a number, not 'x'");
  EXPECT_EQ(message("link=1.5"), "event 'link=1.5': link must be a whole number");
  EXPECT_EQ(message("where=up"), "event 'where=up': where must be wire, in or out, not 'up'");
  EXPECT_EQ(message("loss=2"), "event 'loss=2': loss must be 0 to 1");
  EXPECT_NE(message("los=1").find("'los' is neither at_ms"), std::string::npos);
}

TEST(EventText, find_wrong__what_cannot_happen_in_the_scenario) {
  ScenarioOptions options;  // two ranks, two sockets each
  const auto wrong = [&options](const char* text) {
    return find_wrong(parse_event(text).value(), options);
  };
  EXPECT_EQ(wrong("at_ms=1 link=3 from=0 to=1 down=1"), "");
  EXPECT_EQ(wrong("at_ms=1 link=4 down=1"), "there is no link 4: they are 0 to 3");
  EXPECT_EQ(wrong("at_ms=1 from=2 down=1"), "there is no rank 2");
  EXPECT_EQ(wrong("at_ms=1"), "it changes nothing: give a setting or flap_ms");
  EXPECT_EQ(wrong("at_ms=5 flap_ms=2"), "flapping must end: give until_ms");
  EXPECT_EQ(wrong("at_ms=0 flap_ms=0.001 until_ms=1000"), "it flaps too often");
  EXPECT_EQ(wrong("at_ms=1 where=in down=1"), "ranks have no receiver port: give in_rate_mbit");
  EXPECT_EQ(wrong("at_ms=1 where=out down=1"), "ranks have no sender port: give out_rate_mbit");
  options.heal_at = base::Duration::millis(10);
  EXPECT_EQ(wrong("at_ms=5 loss=1 ramp_ms=6"), "it goes on after heal_at_ms");
  options.cluster.network = {.parallel_links = 2, .is_shared = true};
  EXPECT_EQ(wrong("at_ms=1 from=0 down=1"),
            "links are shared: name both from and to, for a direction, or neither");
}

}  // namespace
}  // namespace securefabric::sim
