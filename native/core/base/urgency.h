// Who runs first. What stands between a process and its replica's first instruction must not wait
// for a time slice of others (up to 4 ms for each hand-over).
#pragma once

#include <sched.h>
#include <sys/types.h>

namespace replpage {

// The thread (0: the caller) runs before all ordinary ones; its children do not. False without the
// right to (CAP_SYS_NICE): it runs on as others do.
bool run_before_others(pid_t tid = 0);

// The thread (0: the caller) runs as ordinary ones do again.
void run_as_others(pid_t tid = 0);

// The thread (0: the caller) gets a tenth of what an ordinary one gets where processors are short,
// until run_beside_others(): for what nobody waits for.
void run_after_others(pid_t tid = 0);

// Ends that.
void run_beside_others(pid_t tid = 0);

// Where the calling thread may run.
cpu_set_t own_cpus();

// Keeps the calling thread on the CPU that it is on, until the end. Whom it wakes and waits for in
// turn is quicker there than on a CPU that has to be woken from its idle state (10 against 60 us
// for a hand-over).
class OnOneCpu {
 public:
  OnOneCpu();
  ~OnOneCpu();
  OnOneCpu(const OnOneCpu&) = delete;
  OnOneCpu& operator=(const OnOneCpu&) = delete;
  // Takes another thread to this CPU, for good. False when it may not be.
  [[nodiscard]] bool take(pid_t tid) const;
  // Another thread, begun by one that was taken, runs where it would have run without.
  void leave(pid_t tid) const;

 private:
  bool pinned_ = false;
  cpu_set_t before_{}, one_{};
};

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
