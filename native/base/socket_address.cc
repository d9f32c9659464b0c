#include "base/socket_address.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <optional>

namespace securefabric::base {
namespace {

constexpr size_t kIpv6Groups = 8;  // of 16 bits each

// The whole of `text` as a number, or nothing. Signs, spaces and the empty text are refused.
template <typename Integer>
std::optional<Integer> parse_number(std::string_view text, int radix) {
  Integer value = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value, radix);
  if (text.empty() || error != std::errc() || stop != end) return std::nullopt;
  return value;
}

// Cuts the text before the first `separator` off `rest`, which becomes empty after the last part.
std::string_view cut_part(std::string_view& rest, char separator, bool& was_last) {
  const size_t at = rest.find(separator);
  was_last = at == std::string_view::npos;
  const std::string_view part = rest.substr(0, at);
  rest = was_last ? std::string_view() : rest.substr(at + 1);
  return part;
}

std::optional<SocketAddress::Ipv4Bytes> parse_ipv4(std::string_view text) {
  SocketAddress::Ipv4Bytes bytes{};
  for (size_t i = 0; i < bytes.size(); ++i) {
    bool was_last = false;
    const std::string_view part = cut_part(text, '.', was_last);
    const auto value = parse_number<uint8_t>(part, 10);
    // "010" is octal to some readers and decimal to others: refused, as inet_pton does.
    const bool is_ambiguous = part.size() > 1 && part.front() == '0';
    if (!value || is_ambiguous || was_last != (i + 1 == bytes.size())) return std::nullopt;
    bytes[i] = *value;
  }
  return bytes;
}

// The groups on one side of "::", or of an address without it.
struct Groups {
  std::array<uint16_t, kIpv6Groups> values{};  // host order
  size_t count = 0;                            // how many of `values` are set

  bool push(uint16_t value) {
    if (count == values.size()) return false;
    values[count++] = value;
    return true;
  }
};

// `may_end_in_ipv4`: the last group may be written as a dotted quad, which fills two groups.
std::optional<Groups> parse_groups(std::string_view text, bool may_end_in_ipv4) {
  Groups groups;
  bool was_last = text.empty();
  while (!was_last) {
    const std::string_view part = cut_part(text, ':', was_last);
    if (was_last && may_end_in_ipv4 && part.find('.') != std::string_view::npos) {
      const auto quad = parse_ipv4(part);
      if (!quad) return std::nullopt;
      const auto high = static_cast<uint16_t>((*quad)[0] << 8 | (*quad)[1]);
      const auto low = static_cast<uint16_t>((*quad)[2] << 8 | (*quad)[3]);
      if (!groups.push(high) || !groups.push(low)) return std::nullopt;
      continue;
    }
    const auto value = parse_number<uint16_t>(part, 16);
    if (!value || part.size() > 4 || !groups.push(*value)) return std::nullopt;
  }
  return groups;
}

std::optional<SocketAddress::Ipv6Bytes> parse_ipv6(std::string_view text) {
  const size_t gap = text.find("::");
  const bool has_gap = gap != std::string_view::npos;
  const auto left = parse_groups(text.substr(0, gap), !has_gap);
  const auto right = has_gap ? parse_groups(text.substr(gap + 2), true) : Groups{};
  if (!left || !right) return std::nullopt;
  const size_t count = left->count + right->count;
  if (has_gap ? count >= kIpv6Groups : count != kIpv6Groups) return std::nullopt;

  SocketAddress::Ipv6Bytes bytes{};
  const auto store = [&bytes](size_t group, uint16_t value) {
    bytes[2 * group] = static_cast<uint8_t>(value >> 8);
    bytes[2 * group + 1] = static_cast<uint8_t>(value & 0xFF);
  };
  for (size_t i = 0; i < left->count; ++i) store(i, left->values[i]);
  const size_t first_right = kIpv6Groups - right->count;
  for (size_t i = 0; i < right->count; ++i) store(first_right + i, right->values[i]);
  return bytes;
}

// An address without port: IPv4, or IPv6 with an optional "%<interface index>".
std::optional<SocketAddress> parse_any_ip(std::string_view text) {
  if (const auto quad = parse_ipv4(text)) return SocketAddress::ipv4(*quad, 0);
  const size_t percent = text.find('%');
  uint32_t scope_id = 0;
  if (percent != std::string_view::npos) {
    const auto scope = parse_number<uint32_t>(text.substr(percent + 1), 10);
    if (!scope) return std::nullopt;
    scope_id = *scope;
  }
  const auto bytes = parse_ipv6(text.substr(0, percent));
  if (!bytes) return std::nullopt;
  return SocketAddress::ipv6(*bytes, 0, scope_id);
}

// Splits "host:port" or "[host]:port"; IPv6 needs the brackets, IPv4 must not have them.
std::optional<SocketAddress> parse_with_port(std::string_view text) {
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return std::nullopt;
  const auto port = parse_number<uint16_t>(text.substr(colon + 1), 10);
  std::string_view host = text.substr(0, colon);
  const bool is_bracketed = host.size() >= 2 && host.front() == '[' && host.back() == ']';
  if (is_bracketed) host = host.substr(1, host.size() - 2);
  const auto address = parse_any_ip(host);
  if (!port || !address || address->is_ipv6() != is_bracketed) return std::nullopt;
  return address->with_port(*port);
}

// The longest run of zero groups, the first of several, and only when it spares two groups or more:
// RFC 5952 §4.2.
struct ZeroRun {
  size_t begin = kIpv6Groups;  // index of its first group
  size_t length = 0;           // in groups; 0 when nothing is to be shortened
};

ZeroRun longest_zero_run(const std::array<uint16_t, kIpv6Groups>& groups) {
  ZeroRun best;
  for (size_t begin = 0; begin < kIpv6Groups; ++begin) {
    size_t end = begin;
    while (end < kIpv6Groups && groups[end] == 0) ++end;
    if (end - begin > best.length) best = {begin, end - begin};
    begin = end;
  }
  return best.length >= 2 ? best : ZeroRun{};
}

std::string hex_group(uint16_t group) {
  std::array<char, 4> digits{};
  const auto result = std::to_chars(digits.data(), digits.data() + digits.size(), group, 16);
  return {digits.data(), result.ptr};
}

std::string ipv6_text(Bytes bytes) {
  std::array<uint16_t, kIpv6Groups> groups{};
  ByteReader reader(bytes);
  for (uint16_t& group : groups) group = reader.u16();
  const ZeroRun zeros = longest_zero_run(groups);
  std::string text;
  for (size_t i = 0; i < kIpv6Groups; ++i) {
    if (zeros.length > 0 && i == zeros.begin) {
      text += "::";
      i += zeros.length - 1;
      continue;
    }
    if (!text.empty() && text.back() != ':') text += ':';
    text += hex_group(groups[i]);
  }
  return text;
}

std::string ipv4_text(Bytes bytes) {
  std::string text;
  for (const uint8_t byte : bytes) {
    if (!text.empty()) text += '.';
    text += std::to_string(byte);
  }
  return text;
}

Error bad_address(std::string_view text, std::string_view expected) {
  std::string message = "not an address: \"";
  message.append(text.substr(0, 80)).append("\"; expected ").append(expected);
  return {ErrorCode::kConfig, std::move(message)};
}

}  // namespace

SocketAddress SocketAddress::ipv4(const Ipv4Bytes& bytes, uint16_t port) {
  SocketAddress address;
  std::copy(bytes.begin(), bytes.end(), address.bytes_.begin());
  address.port_ = port;
  address.family_ = AddressFamily::kIpv4;
  return address;
}

SocketAddress SocketAddress::ipv6(const Ipv6Bytes& bytes, uint16_t port, uint32_t scope_id) {
  SocketAddress address;
  address.bytes_ = bytes;
  address.scope_id_ = scope_id;
  address.port_ = port;
  address.family_ = AddressFamily::kIpv6;
  return address;
}

Result<SocketAddress> SocketAddress::parse(std::string_view text) {
  const auto address = parse_with_port(text);
  if (!address) return bad_address(text, "10.0.0.1:4000 or [fe80::1%2]:4000");
  return *address;
}

Result<SocketAddress> SocketAddress::parse_ip(std::string_view text) {
  const auto address = parse_any_ip(text);
  if (!address) return bad_address(text, "10.0.0.1 or fe80::1%2");
  return *address;
}

Bytes SocketAddress::ip_bytes() const {
  if (family_ == AddressFamily::kNone) return {};
  return Bytes(bytes_).first(is_ipv4() ? 4 : 16);
}

SocketAddress SocketAddress::with_port(uint16_t port) const {
  SocketAddress changed = *this;
  changed.port_ = port;
  return changed;
}

bool SocketAddress::is_unspecified() const {
  const Bytes bytes = ip_bytes();
  const auto is_zero = [](uint8_t byte) { return byte == 0; };
  return !bytes.empty() && std::all_of(bytes.begin(), bytes.end(), is_zero);
}

bool SocketAddress::is_loopback() const {
  static constexpr Ipv6Bytes kIpv6Loopback{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1};
  return is_ipv4() ? bytes_[0] == 127 : is_ipv6() && bytes_ == kIpv6Loopback;
}

bool SocketAddress::is_link_local() const {
  if (is_ipv4()) return bytes_[0] == 169 && bytes_[1] == 254;
  return is_ipv6() && bytes_[0] == 0xFE && (bytes_[1] & 0xC0) == 0x80;
}

std::string SocketAddress::ip_text() const {
  if (family_ == AddressFamily::kNone) return "(no address)";
  if (is_ipv4()) return ipv4_text(ip_bytes());
  std::string text = ipv6_text(ip_bytes());
  if (scope_id_ != 0) text += '%' + std::to_string(scope_id_);
  return text;
}

std::string SocketAddress::to_text() const {
  if (family_ == AddressFamily::kNone) return ip_text();
  const std::string port = ':' + std::to_string(port_);
  return is_ipv6() ? '[' + ip_text() + ']' + port : ip_text() + port;
}

size_t SocketAddress::hash() const noexcept {
  std::array<uint64_t, 2> words{};
  static_assert(sizeof(words) == sizeof(bytes_));
  std::memcpy(words.data(), bytes_.data(), sizeof(words));
  const uint64_t rest = uint64_t{scope_id_} << 32 | uint64_t{port_} << 8 | uint64_t(family_);
  // Three rounds of the finaliser of splitmix64: every input bit reaches every output bit.
  uint64_t mixed = 0;
  for (const uint64_t word : {words[0], words[1], rest}) {
    mixed = (mixed ^ word) + 0x9E3779B97F4A7C15u;
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9u;
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EBu;
    mixed ^= mixed >> 31;
  }
  return static_cast<size_t>(mixed);
}

}  // namespace securefabric::base
