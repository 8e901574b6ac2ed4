#include "core/restore/wait_limit.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <utility>

#include "core/base/clock.h"
#include "core/base/sys_error.h"

namespace replpage {
namespace {

// Once the limit has passed it is told again and again: a wait may begin just after it was told.
constexpr long kAgainNs = 100'000'000;

thread_local uint64_t ends_us = 0;  // 0: no limit

void catch_alarm() {
  struct sigaction action {};
  action.sa_handler = [](int) {};  // without SA_RESTART: it interrupts
  if (::sigaction(SIGALRM, &action, nullptr) != 0) throw SysError::from_errno("sigaction");
}

}  // namespace

WaitLimit::WaitLimit(uint64_t us) {
  catch_alarm();
  sigevent event{};
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = SIGALRM;
  event._sigev_un._tid = ::gettid();
  // Too many signals of the same user are queued, whoever's: better without a limit than not at
  // all.
  has_timer_ = ::timer_create(CLOCK_MONOTONIC, &event, &timer_) == 0;
  outer_us_ = std::exchange(ends_us, now_us() + us);
  const itimerspec when{
      .it_interval = {0, kAgainNs},
      .it_value = {static_cast<time_t>(us / 1'000'000), static_cast<long>(us % 1'000'000) * 1000}};
  if (has_timer_) ::timer_settime(timer_, 0, &when, nullptr);
}

WaitLimit::~WaitLimit() {
  if (has_timer_) ::timer_delete(timer_);
  ends_us = outer_us_;
}

int wait_for_tracee(pid_t tid, const char* what) {
  int status = 0;
  while (::waitpid(tid, &status, __WALL) < 0) {
    if (errno != EINTR) throw SysError::from_errno(what, on_pid(tid));
    if (ends_us != 0 && now_us() >= ends_us) throw SysError(what, ETIMEDOUT, on_pid(tid));
  }
  return status;
}

}  // namespace replpage
