// All threads of a group's process tree under ptrace, owned by one tracer thread.
//
// Every method except wake() must be called from the thread that called seize(): ptrace binds to
// the thread that attached (ptrace(2)). That thread must have no children of its own, since it
// reaps what waitid gives it; children of other threads are not touched. Between seize() and
// detach() its asynchronous signals are blocked, but for one that nobody uses,
// which this module takes for wake().
//
// Stops are looked at with waitid(WNOWAIT) and ended by PTRACE_CONT, PTRACE_LISTEN or
// PTRACE_DETACH only, so that a tracer that dies in between loses no signal. Consumed are only
// stops that carry none. PTRACE_O_EXITKILL is never set: the primary survives us.
//
// A thread is let go at its exit stop by detaching: it ends as if it had never been traced, and
// neither its parent nor our own process's SIGCHLD handler waits for us. SA_NOCLDSTOP is set on
// that handler, at every freeze, so that stops do not wake an event loop.
//
// A birth shows twice, in either order: as an event of its maker and as the first stop of the new
// thread. The latter makes it known to the owner.
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

// A signal that as a rule ends the process, delivered to a thread that has a handler for it.
struct CrashSignal {
  int signal = 0;  // 0: none
  uint64_t since_ns = 0;
  uint64_t stack = 0, code = 0;  // where the thread was
};

struct TracedThread {
  pid_t tid = 0;  // as the daemon sees it
  pid_t pid = 0;
  StopKind stop = StopKind::kRunning;
  int signal = 0;     // kSignal, kGroupStop
  int exit_code = 0;  // kExit: wait status that the kernel will report
  CrashSignal crash;
  bool vfork_wait = false;  // waits in vfork: cannot be stopped until its child execs or exits
  // Was last seen stopped by job control. A kill ends that, and the kernel forgets it.
  bool job_stopped = false;
};

struct TracedProcess {
  pid_t pid = 0;
  pid_t parent = 0;         // 0 for the root
  uint32_t executions = 0;  // counts execve: each one starts a new address space
  // At the last freeze: continued by job control, and its parent had not waited for that. Not told
  // of the root, whose parent is nobody's business.
  bool continued = false;
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
  // All threads of a process have left user code for good; its memory may still be torn down.
  // `wait_status` as wait(2) gives it. Called from wait_events(), and for descendants by freezes.
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
  // How often a process began to create threads, or children, too fast to follow each; see
  // follows_all_threads and follows_all_children.
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
  // (CLOCK_MONOTONIC ns, 0: none), when no process is left, or when the observer froze the tree.
  // A frozen tree stays frozen; only exits are handled then.
  void wait_events(uint64_t deadline_ns = 0);

  // Makes wait_events return soon. Any thread, async-signal-safe, never lost.
  void wake();

  // Stops every thread. When one does not stop within deadline_us all are thawed again; a thread
  // that is known to wait in vfork abandons the freeze before anything is stopped. Threads that
  // stand at an exit stop count as stopped. A signal that comes in between is delivered at thaw().
  // A system call that the stop would break is mended: see interrupted_call.h. Throws SysError
  // (everything is thawed then). A frozen tree is looked at again: see stands_still().
  FreezeResult freeze(uint64_t deadline_us);
  void thaw();

  // Frozen: false when somebody has killed a process since. It leaves its stop for its exit stop,
  // and what is read of it meanwhile is no state: freeze again, and read again.
  [[nodiscard]] bool stands_still() const;

  // Stops every thread except those of `dying`, which goes its way to its exit stops; used for the
  // descendants of a root that was killed. Waits for `dying` to be wholly at exit stops too. Gives
  // children in vfork up to half the time to execute their program first.
  FreezeResult freeze_around_death(pid_t dying, uint64_t deadline_us);

  // Frozen: says which thread of the root is in its handler of a crash (SIGSEGV, SIGABRT, ...), for
  // half a minute at most; empty: none. As a rule such a handler reports and ends the process, so
  // what is copied meanwhile would only crash again.
  [[nodiscard]] std::string crash_being_handled();

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
  // The same for the children that a process makes. Every freeze, around a death too, finds those
  // that live; of the others no on_process_gone tells. What a child made before it was found, and
  // survives it, belongs to the group no more.
  [[nodiscard]] bool follows_all_children(pid_t pid) const;
  [[nodiscard]] TraceCounters counters() const;

  // Runs one system call in a stopped thread (kInterrupt or kGroupStop) and waits for its result,
  // about 50 us. Completes by itself when the tracer dies in the middle; where the process has no
  // code for that it does not, see plain_injections. nullopt: the thread is gone. Errors of the
  // call come back as -errno. `argument_data` is copied to memory that nobody uses (the far end of
  // the main stack, else below the red zone of the thread's own) and back afterwards; an argument
  // equal to kDataArgument is replaced by its address there. Throws SysError: EBUSY the thread is
  // not stopped or has a signal at hand, ENOTSUP 32-bit code, ENOENT no system call instruction,
  // EFAULT no memory, EPERM seccomp cannot be suspended, ETIMEDOUT it did not end in a second (it
  // goes on and completes by itself).
  static constexpr uint64_t kDataArgument = 0xDA7ADA7ADA7ADA7Aull;
  std::optional<long> inject(pid_t tid, long number, std::array<uint64_t, 6> arguments,
                             std::vector<uint8_t>* argument_data = nullptr);

 private:
  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace replpage
