// A timer of a process that waits for SIGCHLD anyway, and looks at everything when it comes.
#pragma once

#include <csignal>
#include <cstdint>
#include <ctime>

#include "core/base/clock.h"
#include "core/base/sys_error.h"

namespace replpage {

class SelfTimer {
 public:
  // The process gets a SIGCHLD after that time. Throws SysError.
  explicit SelfTimer(uint64_t us) : ends_us_(now_us() + us) {
    sigevent event{};
    event.sigev_notify = SIGEV_SIGNAL;
    event.sigev_signo = SIGCHLD;
    if (::timer_create(CLOCK_MONOTONIC, &event, &timer_) != 0) {
      throw SysError::from_errno("create a timer");
    }
    const itimerspec once{
        {0, 0}, {static_cast<time_t>(us / 1'000'000), static_cast<long>(us % 1'000'000) * 1000}};
    ::timer_settime(timer_, 0, &once, nullptr);
  }
  ~SelfTimer() { ::timer_delete(timer_); }
  SelfTimer(const SelfTimer&) = delete;
  SelfTimer& operator=(const SelfTimer&) = delete;

  [[nodiscard]] bool passed() const { return now_us() >= ends_us_; }

 private:
  timer_t timer_{};
  uint64_t ends_us_;
};

}  // namespace replpage
