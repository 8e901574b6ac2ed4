// Keeps the tracer near a thread that gets many signals.
//
// Each signal stops the thread and wakes the tracer, and letting it go on wakes the thread. On two
// processors of a virtual machine each of these wakes one that sleeps, some 100 us; on one
// processor they are two switches. So while signals come quickly the tracer stays on the processor
// where the thread was stopped.
#pragma once

#include <sched.h>
#include <sys/types.h>

#include <cstdint>

namespace replpage {

// Of one tracer thread, which makes all calls.
class StopFollower {
 public:
  StopFollower() = default;
  StopFollower(const StopFollower&) = delete;
  StopFollower& operator=(const StopFollower&) = delete;

  // That thread was stopped by a signal. Above 200 of these a second the tracer follows.
  void note_signal(pid_t pid, pid_t tid);
  // The caller may run everywhere again.
  void leave() noexcept;

 private:
  void follow(pid_t pid, pid_t tid);

  uint32_t stops_ = 0;
  uint64_t since_ns_ = 0;
  int cpu_ = -1;       // where the tracer stays; -1: wherever it likes
  cpu_set_t usual_{};  // while it stays
};

}  // namespace replpage
