#include "core/access/sample_pace.h"

#include <algorithm>

namespace replpage {
namespace {

constexpr uint64_t kColdAfterMinUs = 1'000'000;
constexpr uint64_t kSamplesPerColdAfter = 6;
constexpr double kShare = 0.01;
constexpr double kGib = 1u << 30;
constexpr double kShareOfBytes = 10 * kGib;
// The processor sets a cleared bit in about 0.3 us (340 instead of 39 ns a touch,
// measured on a virtual machine).
constexpr double kSlowedUsPerBit = 0.3;
constexpr double kWeightOfNew = 0.3;

}  // namespace

SamplePace::SamplePace(uint64_t cold_after_us)
    : shortest_us_(std::max(cold_after_us, kColdAfterMinUs) / kSamplesPerColdAfter),
      period_us_(shortest_us_) {}

void SamplePace::note(const AccessSample& sample) {
  if (sample.process_gone) return;
  const auto cost = static_cast<double>(sample.look_us + sample.clear_us);
  const double slowed = static_cast<double>(sample.cleared_bits) * kSlowedUsPerBit;
  const double weight = first_ ? 1.0 : kWeightOfNew;
  first_ = false;
  cost_us_ += weight * (cost - cost_us_);
  slowed_us_ += weight * (slowed - slowed_us_);
  const double bytes = std::max(kGib, static_cast<double>(sample.looked_bytes));
  const double wanted = std::max(cost_us_ / (kShare * bytes / kShareOfBytes), slowed_us_ / kShare);
  period_us_ = std::clamp(static_cast<uint64_t>(wanted), shortest_us_, kPeriodMaxUs);
}

double SamplePace::share() const { return cost_us_ / static_cast<double>(period_us_); }

}  // namespace replpage
