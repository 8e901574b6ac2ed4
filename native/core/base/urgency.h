// Who runs first. What stands between a process and its replica's first instruction must not wait
// for a time slice of others (up to 4 ms for each hand-over).
#pragma once

#include <sys/types.h>

namespace replpage {

// The thread (0: the caller) runs before all ordinary ones; its children do not. False without the
// right to (CAP_SYS_NICE): it runs on as others do.
bool run_before_others(pid_t tid = 0);

// The calling thread runs as ordinary ones do again.
void run_as_others();

// For long work in the middle of what is urgent otherwise.
class RunsAsOthers {
 public:
  explicit RunsAsOthers(bool urgent_else) : urgent_else_(urgent_else) {
    if (urgent_else_) run_as_others();
  }
  ~RunsAsOthers() {
    if (urgent_else_) run_before_others();
  }
  RunsAsOthers(const RunsAsOthers&) = delete;
  RunsAsOthers& operator=(const RunsAsOthers&) = delete;

 private:
  bool urgent_else_;
};

}  // namespace replpage
