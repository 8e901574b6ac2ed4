// How much of a file that each epoch fills anew stays populated in between.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/base/page.h"

namespace replpage {

// More of the staging memory is kept warm only by epochs that needed all of it. On a virtual
// machine whose host takes back what was freed, a page costs up to 8 us at its first touch, 20
// times its copy.
inline constexpr uint64_t kWarmMemoryMax = 64ull << 20;

class WarmPart {
 public:
  // An epoch has used `used` bytes from the start on. What recent ones did not need is given back
  // over some dozen; one of a few pages does not keep anything from cooling down to itself. Returns
  // how much was populated before: what lies between that and bytes() is to be given back.
  uint64_t note(uint64_t used, uint64_t most = UINT64_MAX) {
    const uint64_t populated = std::max(used, bytes_);
    const uint64_t cooled = page_floor(bytes_ - bytes_ / kCoolingDivisor);
    bytes_ = std::min(std::max(used, cooled < kLeast ? 0 : cooled), most);
    return populated;
  }
  void forget() { bytes_ = 0; }
  [[nodiscard]] uint64_t bytes() const { return bytes_; }

 private:
  static constexpr uint64_t kCoolingDivisor = 8;
  static constexpr uint64_t kLeast = 1ull << 20;
  uint64_t bytes_ = 0;
};

}  // namespace replpage
