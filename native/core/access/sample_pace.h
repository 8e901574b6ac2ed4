// How often to sample accesses. Pure.
#pragma once

#include <cstdint>

#include "core/access/access_tracker.h"

namespace replpage {

// The period is a sixth of the time after which a page counts as cold, or longer where sampling
// would take more than its share: of our CPU, 1 % of one for each 10 GiB (a process below 1 GiB
// counts as one), and of the process's time 1 %, by the touches that are slower because their bit
// was cleared.
class SamplePace {
 public:
  // cold_after_us: at least a second is taken.
  explicit SamplePace(uint64_t cold_after_us);

  void note(const AccessSample& sample);

  // From the start of one sample to that of the next, in microseconds.
  [[nodiscard]] uint64_t period_us() const { return period_us_; }
  // Of one CPU that sampling takes at this period: 0.01 is 1 %.
  [[nodiscard]] double share() const;

  static constexpr uint64_t kPeriodMaxUs = 600'000'000;

 private:
  uint64_t shortest_us_;
  uint64_t period_us_;
  double cost_us_ = 0, slowed_us_ = 0;  // of a usual sample
  bool first_ = true;
};

}  // namespace replpage
