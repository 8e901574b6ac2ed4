// Attaching to a whole process tree and letting go of it.

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "core/base/clock.h"
#include "core/base/proc_stat.h"
#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/trace/ptrace_call.h"
#include "core/trace/tree_state.h"

namespace replpage {
namespace {

// How long detach() waits for threads that do not stop. What is left then is let go by the kernel
// when the tracer thread ends (exit_ptrace in kernel/ptrace.c).
constexpr uint64_t kDetachDeadlineNs = 1'000'000'000;

// An execve by one thread ends the others, and those that we trace wait for us at their exit stops,
// while attaching to the next one would wait for the execve.
constexpr uint64_t kExecutionDeadlineNs = 3'000'000;
constexpr int kSeizeTriesMax = 1000;
constexpr int kNumberTriesMax = 5;

// Zombies, threads and whole processes, cannot be attached to: PTRACE_SEIZE gives EPERM.
bool is_dead(pid_t pid) {
  const auto tids = numeric_entries("/proc/" + std::to_string(pid) + "/task");
  return !tids || std::all_of(tids->begin(), tids->end(),
                              [pid](pid_t tid) { return replpage::is_dead(pid, tid); });
}

// Threads attached in its life are new to the observer.
class Adopting {
 public:
  explicit Adopting(bool& flag) : flag_(flag) { flag_ = true; }
  ~Adopting() { flag_ = false; }
  Adopting(const Adopting&) = delete;
  Adopting& operator=(const Adopting&) = delete;

 private:
  bool& flag_;
};

}  // namespace

bool is_thread_of(pid_t pid, pid_t tid) noexcept { return ::syscall(SYS_tgkill, pid, tid, 0) == 0; }

void TraceTree::Implementation::seize(pid_t pid, bool trace_exits) {
  wait.bind();
  quieten_stop_notices();
  root = pid;
  options = PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACEEXEC |
            PTRACE_O_TRACESYSGOOD;
  if (trace_exits) options |= PTRACE_O_TRACEEXIT;
  try {
    for (int tries = 1; !seize_tree(pid); ++tries) {
      if (tries == kSeizeTriesMax) throw SysError("PTRACE_SEIZE", EAGAIN, on_pid(pid));
      ++counters.seize_retries;
      ChildEvent event;
      while (wait.peek_any(event, Blocking::kNo) == Peeked::kEvent) handle(event);
    }
  } catch (...) {
    detach();
    throw;
  }
}

// False when an execve is in the way.
bool TraceTree::Implementation::seize_tree(pid_t pid) {
  try {
    seize_process(pid, 0);
    if (!processes.contains(pid)) {
      // Alive: an execve was giving its number to another thread.
      if (!is_dead(pid)) return false;
      throw SysError("PTRACE_SEIZE", ESRCH, on_pid(pid));
    }
    // A thread seized early may have made children that a later pass finds: until nothing is new.
    for (bool found = true; found;) {
      found = false;
      std::vector<pid_t> known;
      for (const auto& [id, process] : processes) known.push_back(id);
      for (const pid_t id : known) found = seize_process(id, processes[id].parent) || found;
      for (const pid_t id : known) found = seize_children(id) || found;
    }
    return true;
  } catch (const SysError& error) {
    if (error.error() != EAGAIN) throw;
    return false;
  }
}

// True when something new was attached.
bool TraceTree::Implementation::seize_process(pid_t pid, pid_t parent) {
  bool found = false;
  const bool known = processes.contains(pid);
  for (bool again = true; again;) {
    again = false;
    const auto tids = numeric_entries("/proc/" + std::to_string(pid) + "/task");
    if (!tids) break;
    for (const pid_t tid : *tids) {
      if (marks.contains(tid)) continue;
      auto [at, added] = processes.try_emplace(pid);
      if (added && adopting) adopted.insert(pid);
      if (added) at->second = {.pid = pid, .parent = parent, .executions = 0, .threads = {}};
      again = seize_thread(at->second, tid) || again;
    }
    found = found || again;
  }
  const auto at = processes.find(pid);
  if (!known && at != processes.end() && at->second.threads.empty()) processes.erase(at);
  return found;
}

// Throws SysError; EAGAIN when the process is in the middle of an execve.
bool TraceTree::Implementation::seize_thread(TracedProcess& process, pid_t tid) {
  // EPERM can mean that it was just ending, and by now another thread has its number (execve).
  for (int tries = 1;; ++tries) {
    const long result = wait.seize(tid, options, now_ns() + kExecutionDeadlineNs);
    if (result == -ESRCH) return false;
    if (result == -EINTR) throw SysError("PTRACE_SEIZE", EAGAIN, on_pid(tid));
    if (result == 0) break;
    ChildEvent event;
    // Made by a thread that we trace already, so attached by the kernel.
    if (wait.peek(tid, event, Blocking::kNo) != Peeked::kNoChild) break;
    if (is_dead(process.pid, tid)) return false;
    if (tries == kNumberTriesMax) {
      throw SysError("PTRACE_SEIZE", static_cast<int>(-result), on_pid(tid));
    }
  }
  add_thread(process, tid, adopting);
  return true;
}

bool TraceTree::Implementation::seize_children(pid_t pid) {
  const auto at = processes.find(pid);
  if (at == processes.end()) return false;
  std::vector<pid_t> tids;
  for (const auto& [tid, thread] : at->second.threads) tids.push_back(tid);
  bool found = false;
  for (const pid_t tid : tids) {
    for (const pid_t child : children_of(pid, tid)) {
      if (!processes.contains(child)) found = seize_process(child, pid) || found;
    }
  }
  return found;
}

// Attaches to threads that a process made while nobody followed. True when there was any.
bool TraceTree::Implementation::adopt_threads(pid_t pid) {
  const auto at = processes.find(pid);
  if (at == processes.end()) return false;
  const Adopting guard(adopting);
  return seize_process(pid, at->second.parent);
}

// The same for its children.
bool TraceTree::Implementation::adopt_children(pid_t pid) {
  const Adopting guard(adopting);
  return seize_children(pid);
}

void TraceTree::Implementation::detach_stopped(pid_t tid) noexcept {
  const TracedThread* thread = find(tid);
  const int signal = thread->stop == StopKind::kSignal ? thread->signal : 0;
  ptrace_detach(tid, signal);
  const auto process = processes.find(thread->pid);
  marks.erase(tid);
  process->second.threads.erase(tid);
  if (process->second.threads.empty()) processes.erase(process);
}

void TraceTree::Implementation::detach() noexcept {
  try {
    detach_all(now_ns() + kDetachDeadlineNs);
  } catch (...) {
    ++counters.abandoned;  // out of memory: the end of the tracer thread lets them go
  }
  wait.arm(0);
  processes.clear();
  marks.clear();
  announced.clear();
  unannounced.clear();
  vfork_waits.clear();
  unheld.clear();
  sites.clear();
  churns.clear();
  adopted.clear();
  gone.clear();
  injection.reset();
  follower.leave();
  holding = false;
  detaching = false;
  wait.unbind();
}

// Every thread is let go as soon as it stands, so that a parent in vfork gets its child's end.
void TraceTree::Implementation::detach_all(uint64_t deadline_ns) {
  detaching = true;
  holding = true;
  dying = 0;
  for (auto& [tid, mark] : marks) {
    TracedThread* thread = find(tid);
    if (mark.listening) thread->stop = StopKind::kRunning;
    if (thread->stop == StopKind::kRunning) ptrace_interrupt(tid);
  }
  wait.arm(deadline_ns);
  for (;;) {
    std::vector<pid_t> stopped;
    for (const auto& [tid, mark] : marks) {
      if (find(tid)->stop != StopKind::kRunning) stopped.push_back(tid);
    }
    for (const pid_t tid : stopped) detach_stopped(tid);
    if (marks.empty() && announced.empty()) return;
    wait.begin();
    if (now_ns() >= deadline_ns) break;
    ChildEvent event;
    const Peeked peeked = wait.peek_any(event, Blocking::kYes);
    if (peeked == Peeked::kNoChild) return;
    if (peeked == Peeked::kEvent) handle(event);
  }
  ++counters.abandoned;
}

}  // namespace replpage
