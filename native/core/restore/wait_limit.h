// How long the calling thread waits for its tracees. One of them may hang in the kernel, in a file
// of a mount that does not answer: then the wait ends with a reason, and not never.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <ctime>

namespace replpage {

// Of the calling thread, from now until the end of the scope; one within another holds meanwhile.
// Uses SIGALRM, of which only the handler is left behind.
class WaitLimit {
 public:
  // Where the kernel has no timer left the wait is without limit.
  explicit WaitLimit(uint64_t us);
  ~WaitLimit();
  WaitLimit(const WaitLimit&) = delete;
  WaitLimit& operator=(const WaitLimit&) = delete;

 private:
  timer_t timer_{};
  bool has_timer_ = false;
  uint64_t outer_us_ = 0;
};

// The next stop or the end of a tracee, as waitpid(2) tells it. `what` is waited for: throws
// SysError, with ETIMEDOUT once the limit has passed, where there is one.
int wait_for_tracee(pid_t tid, const char* what);

}  // namespace replpage
