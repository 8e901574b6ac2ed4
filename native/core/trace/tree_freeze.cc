// Stopping the whole tree within a deadline, or not at all.

#include <sys/syscall.h>
#include <sys/user.h>

#include <algorithm>

#include "core/base/clock.h"
#include "core/base/proc_stat.h"
#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/trace/ptrace_call.h"
#include "core/trace/tree_state.h"

namespace replpage {
namespace {

// Longest wait for one thread while others may need us to get on (execve waits for the exit of the
// other threads, and cannot be interrupted).
constexpr uint64_t kOneThreadNs = 500'000;

std::string first_word(const std::string& text) {
  return text.substr(0, text.find_first_of(" \n"));
}

bool is_vfork(const std::string& call) {
  return call == "58" || call == "56" || call == "435";  // vfork, clone, clone3
}

bool forks(uint64_t call) {
  return call == SYS_fork || call == SYS_vfork || call == SYS_clone || call == SYS_clone3;
}

}  // namespace

// A dying thread stops waiting by itself.
std::string TraceTree::Implementation::first_vfork_wait(pid_t except) const {
  for (const auto& [child, waiter] : vfork_waits) {
    const auto mark = marks.find(waiter);
    if (mark == marks.end() || mark->second.pid == except) continue;
    return "thread " + std::to_string(waiter) + " waits in vfork for its child " +
           std::to_string(child);
  }
  return {};
}

std::vector<pid_t> TraceTree::Implementation::who_left() const {
  std::vector<pid_t> tids;
  for (const auto& [pid, process] : processes) {
    for (const auto& [tid, thread] : process.threads) {
      const bool kept = thread.stop != StopKind::kRunning && thread.stop != StopKind::kExit;
      if (kept && ptrace_was_killed(tid, thread.signal)) tids.push_back(tid);
    }
  }
  return tids;
}

void TraceTree::Implementation::interrupt_all() {
  for (auto& [pid, process] : processes) {
    if (pid == dying) continue;
    for (auto& [tid, thread] : process.threads) {
      ThreadMark& mark = marks[tid];
      if (mark.listening) thread.stop = StopKind::kRunning;
      if (thread.stop == StopKind::kRunning) ptrace_interrupt(tid);
    }
  }
}

// Threads that must still come to a stop, and children that have not been seen yet.
std::vector<pid_t> TraceTree::Implementation::unstopped() const {
  std::vector<pid_t> tids;
  for (const auto& [pid, process] : processes) {
    for (const auto& [tid, thread] : process.threads) {
      const bool stands =
          pid == dying ? thread.stop == StopKind::kExit : thread.stop != StopKind::kRunning;
      if (!stands) tids.push_back(tid);
    }
  }
  for (const auto& [tid, maker] : announced) tids.push_back(tid);
  return tids;
}

// True when there was news of the thread.
bool TraceTree::Implementation::look_at(pid_t tid, Blocking blocking) {
  ChildEvent event;
  switch (wait.peek(tid, event, blocking)) {
    case Peeked::kEvent:
      handle(event);
      return true;
    case Peeked::kNoChild:
      handle_vanished(tid);
      return true;
    default:
      return false;
  }
}

// With every known thread stopped, nothing new can come from them: what is found now and stops too
// completes the tree. One that is found may have made others before, or have been at it.
bool TraceTree::Implementation::adopt_all_strangers() {
  bool found = false;
  for (const auto& [pid, churn] : churns) {
    if (churn.threads.loose && pid != dying) found |= adopt_threads(pid);
    if (churn.children.loose) found |= adopt_children(pid);
  }
  const std::vector<pid_t> newcomers(adopted.begin(), adopted.end());
  for (const pid_t pid : newcomers) {
    found |= adopt_threads(pid);
    found |= adopt_children(pid);
  }
  if (dying != 0) found |= adopt_unannounced();
  if (found) interrupt_all();
  return found;
}

// A kill in the middle of a fork takes away the event that tells of the child, or of the thread; it
// lives all the same, attached by the kernel.
bool TraceTree::Implementation::adopt_unannounced() {
  std::vector<pid_t> makers;
  for (const auto& [pid, process] : processes) {
    const bool made =
        std::any_of(process.threads.begin(), process.threads.end(), [](const auto& entry) {
          user_regs_struct registers{};
          return entry.second.stop == StopKind::kExit &&
                 ptrace_get_registers(entry.first, registers) == 0 && forks(registers.orig_rax);
        });
    if (made) makers.push_back(pid);
  }
  bool found = false;
  for (const pid_t pid : makers) {
    const auto churn = churns.find(pid);
    const bool loose = churn != churns.end() && churn->second.threads.loose;
    if (!loose) found |= adopt_threads(pid);
    found |= adopt_children(pid);
  }
  return found;
}

// After a while, and only in a freeze, when every thread is known.
void TraceTree::Implementation::follow_again() {
  const uint64_t now = now_ns();
  const auto is_due = [now](BirthChurn& churn) {
    if (!churn.loose || now < churn.loose_until_ns) return false;
    churn.loose = false;
    churn.births = 0;
    return true;
  };
  for (auto& [pid, churn] : churns) {
    const auto process = processes.find(pid);
    if (pid == dying || process == processes.end()) continue;
    const bool threads_due = is_due(churn.threads);
    if (!is_due(churn.children) && !threads_due) continue;
    for (const auto& [tid, thread] : process->second.threads) {
      ptrace_call(PTRACE_SETOPTIONS, tid, 0, static_cast<uintptr_t>(options_for(churn)));
    }
  }
}

// Empty when all stand, otherwise why not.
std::string TraceTree::Implementation::collect_stops(uint64_t deadline_ns) {
  for (;;) {
    const std::vector<pid_t> waiting = unstopped();
    if (waiting.empty() && !adopt_all_strangers()) return {};
    if (waiting.empty()) continue;
    if (!freeze_failure.empty()) return freeze_failure;
    bool found = false;
    for (const pid_t tid : waiting) found |= look_at(tid, Blocking::kNo);
    if (found) continue;
    wait.begin();
    const uint64_t now = now_ns();
    if (now >= deadline_ns) return why_not_stopped(waiting.front());
    wait.arm(std::min(deadline_ns, now + kOneThreadNs));
    look_at(waiting.front(), Blocking::kYes);
  }
}

std::string TraceTree::Implementation::why_not_stopped(pid_t tid) {
  const TracedThread* thread = find(tid);
  const std::string name = "thread " + std::to_string(tid);
  if (thread == nullptr) return name + " is being created";
  const std::string task =
      "/proc/" + std::to_string(thread->pid) + "/task/" + std::to_string(tid) + "/";
  const auto stat = ProcStat::of(thread->pid, tid);
  const auto call = read_proc(task + "syscall");
  if (!stat || !call) return name + " is ending";
  const char state = stat->state();
  if (stat->is_dead()) {
    // A leader that ended before its other threads: no news of it until they end too.
    remove_thread(tid, 0);
    return name + " has ended";
  }
  const std::string number = first_word(*call);
  if (state == 'D' && is_vfork(number)) return name + " waits in vfork for its child";
  return name + " did not stop: state " + state + ", system call " + number;
}

// There is no second try at a death: give a child in vfork the time to execute its program.
void TraceTree::Implementation::let_vforks_finish(pid_t around, uint64_t deadline_ns) {
  if (first_vfork_wait(around).empty()) return;
  const uint64_t outer = wait.arm(deadline_ns);
  while (!first_vfork_wait(around).empty()) {
    wait.begin();
    if (now_ns() >= deadline_ns) break;
    ChildEvent event;
    if (wait.peek_any(event, Blocking::kYes) == Peeked::kEvent) handle(event);
  }
  wait.arm(outer);
}

FreezeResult TraceTree::Implementation::freeze(uint64_t deadline_us, pid_t around) {
  const uint64_t start = now_ns();
  quieten_stop_notices();
  ++counters.freezes;
  FreezeResult result;
  if (around != 0) let_vforks_finish(around, start + deadline_us * 1000 / 2);
  result.reason = first_vfork_wait(around);
  if (result.reason.empty()) {
    if (holding) {
      for (const pid_t tid : who_left()) {
        find(tid)->stop = StopKind::kRunning;
        marks[tid].consumed = false;
      }
    }
    holding = true;
    dying = around;
    freeze_failure.clear();
    interrupt_all();
    const uint64_t outer = wait.arm(0);
    try {
      result.reason = collect_stops(start + deadline_us * 1000);
    } catch (const SysError& error) {
      if (error.error() != EAGAIN) {
        wait.arm(outer);
        thaw();
        throw;
      }
      result.reason = "a process is executing another program";
    } catch (...) {
      wait.arm(outer);
      thaw();
      throw;
    }
    wait.arm(outer);
  }
  result.frozen = result.reason.empty() && !processes.empty();
  if (processes.empty()) result.reason = "no process is left";
  if (result.frozen) {
    unannounced.clear();  // every maker's event has been seen by now
    adopted.clear();
    follow_again();
    note_continued();
    report_ended_children();
  } else {
    ++counters.abandoned;
    thaw();
  }
  result.took_us = (now_ns() - start) / 1000;
  return result;
}

// A thread that was killed while we kept it may stand at its exit stop by now, and must not be
// continued from there as if it still stood where we left it.
bool TraceTree::Implementation::still_stands(const TracedThread& thread, const ThreadMark& mark) {
  ChildEvent event;
  const Peeked peeked = wait.peek(thread.tid, event, Blocking::kNo);
  if (peeked == Peeked::kNothing) return mark.consumed;
  if (peeked != Peeked::kEvent || event.ended()) return false;
  return event.event() == (thread.stop == StopKind::kSignal ? 0 : PTRACE_EVENT_STOP);
}

void TraceTree::Implementation::thaw() {
  holding = false;
  dying = 0;
  for (auto& [pid, process] : processes) {
    for (auto& [tid, thread] : process.threads) {
      ThreadMark& mark = marks[tid];
      const bool kept = thread.stop != StopKind::kRunning && thread.stop != StopKind::kExit;
      if (!kept || mark.listening) continue;
      if (still_stands(thread, mark)) {
        resume(thread, mark);
      } else {
        thread.stop = StopKind::kRunning;  // its exit stop or end is still to be seen
      }
    }
  }
}

}  // namespace replpage
