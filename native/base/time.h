// Time as the core sees it: signed nanoseconds, never read from a clock here.
//
// `Instant` counts from an origin that only the driver knows (CLOCK_MONOTONIC on sockets, zero in
// the simulator); `Duration` is a difference. Mixing them up does not compile.
#pragma once

#include <compare>
#include <cstdint>
#include <limits>

namespace securefabric::base {

class Duration {
 public:
  constexpr Duration() = default;
  static constexpr Duration nanos(int64_t n) { return Duration(n); }
  static constexpr Duration micros(int64_t n) { return Duration(n * 1'000); }
  static constexpr Duration millis(int64_t n) { return Duration(n * 1'000'000); }
  static constexpr Duration seconds(int64_t n) { return Duration(n * 1'000'000'000); }
  // Longer than any job: 146 years, far enough from overflow that two of them can be added.
  static constexpr Duration forever() { return Duration(std::numeric_limits<int64_t>::max() / 2); }

  constexpr int64_t nanos() const { return nanos_; }
  constexpr int64_t micros() const { return nanos_ / 1'000; }
  constexpr int64_t millis() const { return nanos_ / 1'000'000; }
  constexpr double seconds() const { return static_cast<double>(nanos_) * 1e-9; }

  constexpr auto operator<=>(const Duration&) const = default;
  constexpr Duration operator+(Duration other) const { return Duration(nanos_ + other.nanos_); }
  constexpr Duration operator-(Duration other) const { return Duration(nanos_ - other.nanos_); }
  constexpr Duration operator*(int64_t factor) const { return Duration(nanos_ * factor); }
  constexpr Duration operator/(int64_t divisor) const { return Duration(nanos_ / divisor); }

 private:
  explicit constexpr Duration(int64_t n) : nanos_(n) {}
  int64_t nanos_ = 0;  // may be negative: the difference of two instants
};

class Instant {
 public:
  constexpr Instant() = default;
  static constexpr Instant from_nanos(int64_t n) { return Instant(n); }
  // The deadline of something that has none.
  static constexpr Instant never() { return Instant(std::numeric_limits<int64_t>::max()); }

  constexpr int64_t nanos() const { return nanos_; }
  constexpr bool is_never() const { return *this == never(); }

  constexpr auto operator<=>(const Instant&) const = default;
  constexpr Duration operator-(Instant other) const {
    return Duration::nanos(nanos_ - other.nanos_);
  }
  // Saturates at `never`, so that a timeout of 10,000 days (Lightning's default) cannot wrap.
  constexpr Instant operator+(Duration d) const {
    if (nanos_ > 0 && d.nanos() >= std::numeric_limits<int64_t>::max() - nanos_) return never();
    return Instant(nanos_ + d.nanos());
  }
  constexpr Instant operator-(Duration d) const { return Instant(nanos_ - d.nanos()); }

 private:
  explicit constexpr Instant(int64_t n) : nanos_(n) {}
  int64_t nanos_ = 0;  // since the driver's origin
};

constexpr Instant earlier(Instant a, Instant b) {
  return a < b ? a : b;
}
constexpr Duration longer(Duration a, Duration b) {
  return a < b ? b : a;
}
constexpr Duration shorter(Duration a, Duration b) {
  return a < b ? a : b;
}

}  // namespace securefabric::base
