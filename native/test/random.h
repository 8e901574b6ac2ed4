// Numbers that are the same in every run (Marsaglia, "Xorshift RNGs", 2003).
#pragma once

#include <cstdint>

namespace replpage::testing {

// Allocates nothing, so that a victim may use it. The seed must not be 0.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u) {}
  uint64_t operator()(uint64_t bound) {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_ % bound;
  }

 private:
  uint64_t state_;
};

}  // namespace replpage::testing
