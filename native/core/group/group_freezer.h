// Work on a group that stands still.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "core/base/clock.h"
#include "core/group/group_context.h"

namespace replpage {

// Starting and ending inject into every process, which takes longer than an epoch's freeze.
inline constexpr uint64_t kStartDeadlineUs = 200'000;

// Starting is given several chances to find the primary in a state that can be read.
class StartPatience {
 public:
  // Asked after each try that failed. Where everything is slow one try alone may take all the time.
  [[nodiscard]] bool is_over() { return ++tries_ >= kTriesMin && now_us() > ends_us_; }

 private:
  static constexpr uint64_t kPatienceUs = 10'000'000;
  static constexpr int kTriesMin = 5;
  int tries_ = 0;
  uint64_t ends_us_ = now_us() + kPatienceUs;
};

// Tracer thread only.
class GroupFreezer {
 public:
  explicit GroupFreezer(GroupContext& context) : context_(context) {}

  // Stops the group, and attaches to it before where it is only attached for captures. Not done
  // while the primary is dying.
  FreezeResult freeze(uint64_t deadline_us);

  // Thaws it, or lets go of it where it is only attached for captures.
  void let_run();

  // Runs `work` with the group stopped, and lets it run again. Returns why it cannot be done now,
  // or nothing: a thread does not stop, or stands where it can neither be read nor asked. What else
  // `work` throws passes through.
  std::string while_stopped(uint64_t deadline_us, const std::function<void()>& work);

 private:
  GroupContext& context_;
};

}  // namespace replpage
