// All threads of a group's process tree under ptrace, owned by one tracer thread.
//
// Every method except wake() must be called from the thread that called seize(): ptrace binds to
// the thread that attached (ptrace(2)). Stops are looked at with waitid(WNOWAIT) and ended by
// PTRACE_CONT, PTRACE_LISTEN or PTRACE_DETACH only, so that a tracer that dies in between loses no
// signal. PTRACE_O_EXITKILL is never set: the primary survives us.
#pragma once

#include <sys/types.h>
#include <sys/user.h>

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace replpage {

enum class StopKind : uint8_t {
  kRunning,
  kInterrupt,  // PTRACE_INTERRUPT's trap, or the first stop of a new thread
  kSignal,     // signal-delivery-stop; `signal` is delivered when continued
  kGroupStop,  // job control: continued with PTRACE_LISTEN
  kExit,       // PTRACE_EVENT_EXIT: memory and descriptors are whole, no user code runs any more
};

struct TracedThread {
  pid_t tid = 0;  // as the daemon sees it
  pid_t pid = 0;
  StopKind stop = StopKind::kRunning;
  int signal = 0;           // kSignal, kGroupStop
  int exit_code = 0;        // kExit: wait status that the kernel will report
  bool vfork_wait = false;  // waits in vfork: cannot be stopped until its child execs or exits
};

struct TracedProcess {
  pid_t pid = 0;
  pid_t parent = 0;         // 0 for the root
  uint32_t executions = 0;  // counts execve: each one starts a new address space
  std::map<pid_t, TracedThread> threads;
};

enum class ExitDecision : uint8_t { kRelease, kHold };

// What the tree tells its owner, always on the tracer thread.
class TraceObserver {
 public:
  virtual ~TraceObserver() = default;
  // A fork or vfork was seen; the child is attached and will run when the call returns.
  virtual void on_new_process(const TracedProcess& child) = 0;
  virtual void on_new_thread(const TracedThread& thread) = 0;
  virtual void on_exec(const TracedProcess& process) = 0;
  // A thread stands at its exit stop. kHold keeps it there until release_exit().
  virtual ExitDecision on_exit_stop(const TracedProcess& process, const TracedThread& thread) = 0;
  // All threads of a process are gone. `wait_status` as wait(2) gives it.
  virtual void on_process_gone(pid_t pid, int wait_status) = 0;
};

struct FreezeResult {
  bool frozen = false;
  std::string reason;  // when not frozen: which thread did not stop, and why (vfork, D state)
  uint64_t took_us = 0;
};

struct TraceCounters {
  uint64_t signals = 0, clones = 0, forks = 0, execs = 0, exits = 0, freezes = 0, abandoned = 0;
  // Injections that could not complete by themselves: no rt_sigreturn code in the process.
  uint64_t plain_injections = 0;
  // How often a process began to create threads too fast to follow each; see follows_all_threads.
  uint64_t loosened = 0;
  uint64_t seize_retries = 0;  // an execve was in the way
};

class TraceTree {
 public:
  explicit TraceTree(TraceObserver& observer);
  // Detaches everything that is still attached, delivering held signals. Never throws.
  ~TraceTree();
  TraceTree(const TraceTree&) = delete;
  TraceTree& operator=(const TraceTree&) = delete;

  // Attaches to every thread of `root` and of all its descendants, again and again until no new one
  // appears. Throws SysError (ESRCH no such process, EPERM traced by another or not allowed).
  // With trace_exits false PTRACE_O_TRACEEXIT is left out.
  void seize(pid_t root, bool trace_exits);

  // Detaches every thread; held signals are delivered, group stops kept. Held exit stops are let
  // go.
  void detach();

  // Handles stops as they come. Returns when wake() was called or the deadline passed
  // (CLOCK_MONOTONIC ns, 0: none), or when no process is left.
  void wait_events(uint64_t deadline_ns = 0);

  // Makes wait_events return soon. Any thread, async-signal-safe, never lost.
  void wake();

  // Stops every thread. When one does not stop within deadline_us all are thawed again.
  // Threads that stand at an exit stop count as stopped.
  FreezeResult freeze(uint64_t deadline_us);
  void thaw();

  // Stops every thread except those of `dying`, which goes its way to its exit stops; used for the
  // descendants of a root that was killed. Waits for `dying` to be wholly at exit stops too.
  FreezeResult freeze_around_death(pid_t dying, uint64_t deadline_us);

  // Lets a held exit stop go.
  void release_exit(pid_t tid);
  // Sends SIGKILL to a process and holds its threads at their exit stops no longer.
  void kill_process(pid_t pid);

  [[nodiscard]] const std::map<pid_t, TracedProcess>& processes() const;
  [[nodiscard]] pid_t root() const;
  // False while a process creates threads so fast (200 a second) that they are not followed one by
  // one: every freeze still finds all of them, but when such a process is killed, threads that are
  // younger than the last freeze end unseen, so that only an earlier epoch is whole.
  [[nodiscard]] bool follows_all_threads(pid_t pid) const;
  [[nodiscard]] TraceCounters counters() const;

  // Runs one system call in a stopped thread (kInterrupt only) and waits for its result. Completes
  // by itself when the tracer dies in the middle. nullopt: the thread is gone. Errors of the call
  // come back as -errno. `argument_data` is copied to below the thread's red zone first and back
  // afterwards; an argument equal to kDataArgument is replaced by its address there.
  static constexpr uint64_t kDataArgument = 0xDA7ADA7ADA7ADA7Aull;
  std::optional<long> inject(pid_t tid, long number, std::array<uint64_t, 6> arguments,
                             std::vector<uint8_t>* argument_data = nullptr);

 private:
  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace replpage
