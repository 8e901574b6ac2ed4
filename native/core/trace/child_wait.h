// Looks at state changes of traced threads without consuming them, interruptible by wake() and by a
// deadline with no window in which either could be lost, and without polling.
//
// The trick: both arrive as a signal to the tracer thread. A signal that comes after the last check
// and before the system call would be missed, so the check and the call are a short piece of
// assembly, and the handler moves a program counter that stands inside it to its exit.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <csignal>
#include <cstdint>
#include <ctime>

namespace replpage {

// A state change as waitid(2) tells it.
struct ChildEvent {
  pid_t tid = 0;
  int code = 0;    // CLD_TRAPPED, CLD_EXITED, CLD_KILLED, CLD_DUMPED
  int status = 0;  // CLD_TRAPPED: signal | event << 8
  [[nodiscard]] bool ended() const { return code != CLD_TRAPPED && code != CLD_STOPPED; }
  [[nodiscard]] int event() const { return status >> 8; }
  [[nodiscard]] int signal() const { return status & 0xff; }
};

enum class Peeked : uint8_t { kEvent, kNothing, kInterrupted, kNoChild };

enum class Blocking : uint8_t { kNo, kYes };

class ChildWait {
 public:
  ChildWait() = default;
  ~ChildWait();
  ChildWait(const ChildWait&) = delete;
  ChildWait& operator=(const ChildWait&) = delete;

  // Makes the calling thread the waiter: installs the process-wide handler of the wake signal (the
  // one of a few that nobody uses), unblocks it here and blocks every other
  // asynchronous signal here until unbind(). Throws SysError.
  void bind();
  void unbind() noexcept;

  // Any thread, async-signal-safe.
  void wake() noexcept;
  // True once for one or more wakes.
  bool take_wake() noexcept { return woken_.exchange(false); }

  // From here on no wake and no deadline is lost: call it before looking at their conditions.
  void begin() noexcept;
  // Interrupts the waits at `deadline_ns` (CLOCK_MONOTONIC), once. 0: never. Returns what was set
  // before, for those who wait in the middle of another's wait.
  uint64_t arm(uint64_t deadline_ns) noexcept;

  // Any child of this thread (children of other threads are not touched: __WNOTHREAD).
  Peeked peek_any(ChildEvent& event, Blocking blocking) noexcept;
  Peeked peek(pid_t tid, ChildEvent& event, Blocking blocking) noexcept;
  // PTRACE_SEIZE. 0 or -errno; -EINTR when the process was in an execve until the deadline, which
  // may itself wait for us to let other threads of it end.
  long seize(pid_t tid, long options, uint64_t deadline_ns) noexcept;
  // Takes a stop or an end away, so that it is not seen again. Never blocks.
  Peeked consume(pid_t tid, ChildEvent& event) noexcept;
  // Whether the process was continued after it had been stopped and its parent has not waited for
  // that. It shows only once no stop of the main thread is there to be waited for. The parent and
  // we share the mark (wait_task_continued in kernel/exit.c), so it is left alone.
  [[nodiscard]] bool is_continued(pid_t pid) noexcept;

 private:
  void make_timer();
  void drop_timer() noexcept;

  std::atomic<bool> woken_{false};
  std::atomic<pid_t> waiter_{0};
  pid_t timer_thread_ = 0;  // whose timer_ is; 0: there is none
  uint64_t armed_ns_ = 0;
  timer_t timer_{};
  sigset_t old_mask_{};
};

// Sets SA_NOCLDSTOP on whatever handler SIGCHLD has, so that stops of traced threads do not wake an
// event loop that only wants to know about its own children's deaths. A handler may be installed
// at any time, so owners call this now and then.
void quieten_stop_notices() noexcept;

}  // namespace replpage
