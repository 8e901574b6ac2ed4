// Time for durations, in microseconds and nanoseconds since some start: CLOCK_MONOTONIC where no
// other clock is named.
#pragma once

#include <cstdint>
#include <ctime>

namespace replpage {

inline uint64_t clock_ns(clockid_t clock) {
  timespec t{};
  clock_gettime(clock, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(t.tv_nsec);
}

inline uint64_t now_ns() { return clock_ns(CLOCK_MONOTONIC); }

inline uint64_t now_us() { return now_ns() / 1000; }

inline uint64_t clock_us(clockid_t clock) {
  timespec t{};
  clock_gettime(clock, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1'000'000u + static_cast<uint64_t>(t.tv_nsec) / 1000;
}

}  // namespace replpage
