// Events as text: key=value, separated by spaces.
//
//   at_ms=500 link=1 from=0 to=1 down=1
//   at_ms=200 where=in to=3 rate_mbit=100 ramp_ms=50
//   at_ms=100 link=2 flap_ms=40 until_ms=900
#include <charconv>
#include <cmath>
#include <sstream>

#include "sim/scenario_knobs.h"

namespace securefabric::sim {

using base::Duration;
using base::Rank;

namespace {

constexpr double kNanosPerMilli = 1e6;
constexpr double kMillisMax = 1e9;

base::Error refuse(const std::string& what) {
  return {base::ErrorCode::kConfig, what};
}

struct Place {
  const char* name;
  Hop hop;
};
constexpr Place kPlaces[] = {
    {"wire", Hop::kWire}, {"out", Hop::kSenderPort}, {"in", Hop::kReceiverPort}};

std::optional<double> parse_number(const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

bool is_index(double value) {
  return value >= 0 && value <= UINT32_MAX && value == std::floor(value);
}

Duration millis(double value) {
  return Duration::nanos(static_cast<int64_t>(std::llround(value * kNanosPerMilli)));
}

// Null when the key is none of the durations.
Duration* duration_of(LinkEvent& event, const std::string& key) {
  if (key == "at_ms") return &event.at;
  if (key == "ramp_ms") return &event.ramp;
  if (key == "flap_ms") return &event.flap;
  if (key == "until_ms") return &event.until;
  return nullptr;
}

base::Status set(LinkEvent& event, const std::string& key, const std::string& text) {
  if (key == "where") {
    for (const Place& place : kPlaces) {
      if (text != place.name) continue;
      event.links.hop = place.hop;
      return base::ok_status();
    }
    return refuse("where must be wire, in or out, not '" + text + "'");
  }
  const std::optional<double> value = parse_number(text);
  if (!value) return refuse(key + " must be a number, not '" + text + "'");
  if (Duration* duration = duration_of(event, key)) {
    if (!(*value >= 0 && *value <= kMillisMax)) return refuse(key + " must be 0 to 1e9");
    *duration = millis(*value);
    return base::ok_status();
  }
  if (key == "link" || key == "from" || key == "to") {
    if (!is_index(*value)) return refuse(key + " must be a whole number");
    const auto index = static_cast<uint32_t>(*value);
    if (key == "link") event.links.index = index;
    if (key == "from") event.links.from = Rank{index};
    if (key == "to") event.links.to = Rank{index};
    return base::ok_status();
  }
  const LinkKnob* knob = find_link_knob(key);
  if (knob == nullptr) {
    return refuse("'" + key + "' is neither at_ms, link, from, to, where, ramp_ms, flap_ms, " +
                  "until_ms nor a setting of links");
  }
  if (!(*value >= knob->min && *value <= knob->max)) {
    return refuse(key + " must be " + text_of(knob->min) + " to " + text_of(knob->max));
  }
  event.settings.push_back({knob, *value});
  return base::ok_status();
}

}  // namespace

base::Result<LinkEvent> parse_event(const std::string& text) {
  LinkEvent event;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    const size_t split = word.find('=');
    if (split == std::string::npos) {
      return refuse("event '" + text + "': '" + word + "' is not key=value");
    }
    const base::Status status = set(event, word.substr(0, split), word.substr(split + 1));
    if (!status) return refuse("event '" + text + "': " + status.error().message);
  }
  return event;
}

std::string event_text(const LinkEvent& event) {
  std::string text = "at_ms=" + text_of(static_cast<double>(event.at.nanos()) / kNanosPerMilli);
  const auto add = [&text](const std::string& key, double value) {
    text += " " + key + "=" + text_of(value);
  };
  for (const Place& place : kPlaces) {
    if (place.hop == event.links.hop && place.hop != Hop::kWire) {
      text += std::string(" where=") + place.name;
    }
  }
  if (event.links.index) add("link", *event.links.index);
  if (event.links.from) add("from", event.links.from->value);
  if (event.links.to) add("to", event.links.to->value);
  for (const LinkEvent::Setting& setting : event.settings) add(setting.knob->name, setting.value);
  const auto add_duration = [&](const char* key, Duration duration) {
    if (duration > Duration()) add(key, static_cast<double>(duration.nanos()) / kNanosPerMilli);
  };
  add_duration("ramp_ms", event.ramp);
  add_duration("flap_ms", event.flap);
  add_duration("until_ms", event.until);
  return text;
}

std::string find_wrong(const LinkEvent& event, const ScenarioOptions& options) {
  const ClusterOptions& cluster = options.cluster;
  const NetworkOptions& network = cluster.network;
  const LinkSelector& links = event.links;
  const bool flaps = event.flap > Duration();
  if (event.settings.empty() && !flaps) return "it changes nothing: give a setting or flap_ms";
  if (flaps && event.until <= event.at) return "flapping must end: give until_ms";
  if (flaps && (event.until - event.at).nanos() / event.flap.nanos() >= kFlapsMax) {
    return "it flaps too often";
  }
  const Duration end = std::max(event.at + event.ramp, event.until);
  if (options.heal_at > Duration() && end > options.heal_at) return "it goes on after heal_at_ms";
  for (const auto& rank : {links.from, links.to}) {
    if (rank && rank->value >= cluster.ranks) {
      return "there is no rank " + std::to_string(rank->value);
    }
  }
  if (links.hop == Hop::kSenderPort && network.sender_port.rate_bits_per_second == 0) {
    return "ranks have no sender port: give out_rate_mbit";
  }
  if (links.hop == Hop::kReceiverPort && network.receiver_port.rate_bits_per_second == 0) {
    return "ranks have no receiver port: give in_rate_mbit";
  }
  if (links.hop != Hop::kWire) return "";
  const size_t count = network.parallel_links > 0
                           ? network.parallel_links
                           : cluster.sockets_per_rank * cluster.sockets_per_rank;
  if (links.index && *links.index >= count) {
    return "there is no link " + std::to_string(*links.index) + ": they are 0 to " +
           std::to_string(count - 1);
  }
  if (network.is_shared && links.from.has_value() != links.to.has_value()) {
    return "links are shared: name both from and to, for a direction, or neither";
  }
  return "";
}

}  // namespace securefabric::sim
