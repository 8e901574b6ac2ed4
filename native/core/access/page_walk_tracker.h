// Accessed bits as the processor sets them, read from the page tables and cleared where they were
// set.
#pragma once

#include <memory>

#include "core/access/access_tracker.h"
#include "core/access/cold_advice.h"

namespace replpage {

class PageWalkTracker : public AccessTracker {
 public:
  // Why it does not work on this machine, tried on a page of our own; empty when it does. Swap is
  // looked at anew with every call.
  static std::string refusal();

  explicit PageWalkTracker(pid_t host_pid) : pid_(host_pid) {}
  [[nodiscard]] AccessTrackerKind kind() const override { return AccessTrackerKind::kPageWalk; }
  AccessSample sample(std::span<const MappingImage> mappings, const Visit& visit) override;

 private:
  class Walk;
  bool clear_whole();

  pid_t pid_;
  pid_t tid_ = 0;
  std::unique_ptr<ColdAdvice> advice_;
  bool advice_refused_ = false;
};

}  // namespace replpage
