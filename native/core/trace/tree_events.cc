// What happens to traced threads, one stop at a time.

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>

#include "core/base/clock.h"
#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/trace/interrupted_call.h"
#include "core/trace/ptrace_call.h"
#include "core/trace/tree_state.h"

namespace replpage {
namespace {

// How often threads are looked at one by one while a signal stop is kept; see below.
constexpr long kHeldSignalLookNs = 500'000;

// More than about 200 new threads, or children, a second. While followed each costs three or four
// stops, of some 20 us where processors are awake and of 100 us and more where they are not.
constexpr uint32_t kChurnBirths = 128;
constexpr uint64_t kChurnWindowNs = 640'000'000;
constexpr uint64_t kLooseNs = 500'000'000;  // doubled each time that it was too short
constexpr uint32_t kLooseDoublingsMax = 5;

int wait_status_of(const ChildEvent& event) {
  if (event.code == CLD_EXITED) return (event.status & 0xff) << 8;
  return (event.status & 0x7f) | (event.code == CLD_DUMPED ? 0x80 : 0);
}

pid_t parent_of(pid_t pid) {
  const auto status = read_proc("/proc/" + std::to_string(pid) + "/status");
  if (!status) return 0;
  const auto parent = field_of(*status, "PPid");
  return parent ? std::stoi(std::string(*parent)) : 0;
}

}  // namespace

void TraceTree::Implementation::wait_events(uint64_t deadline_ns) {
  if (holding) return wait_beside_held_signals(deadline_ns);
  wait.arm(deadline_ns);
  for (;;) {
    report_gone();
    wait.begin();
    if (processes.empty() || wait.take_wake()) break;
    if (deadline_ns != 0 && now_ns() >= deadline_ns) break;
    ChildEvent event;
    const Peeked peeked = wait.peek_any(event, Blocking::kYes);
    if (peeked == Peeked::kEvent) handle(event);
    if (peeked == Peeked::kNoChild) {
      // Somebody else in this process reaped them (they were our own process's children).
      while (!processes.empty()) remove_process(processes.begin()->first, 0);
    }
    if (holding) break;
  }
  wait.arm(0);
}

// While a frozen tree is kept, waitid(P_ALL) would report the kept stops again and again. Those
// that carry no signal are consumed; a kept signal stop cannot be, since we could die and lose the
// signal, so then threads are looked at one by one at short intervals.
void TraceTree::Implementation::wait_beside_held_signals(uint64_t deadline_ns) {
  consume_held_stops();
  bool signals = false;
  for (const auto& [tid, mark] : marks) signals |= find(tid)->stop == StopKind::kSignal;
  wait.arm(signals ? 0 : deadline_ns);
  for (;;) {
    report_gone();
    wait.begin();
    if (processes.empty() || wait.take_wake()) break;
    if (deadline_ns != 0 && now_ns() >= deadline_ns) break;
    if (!signals) {
      ChildEvent event;
      if (wait.peek_any(event, Blocking::kYes) == Peeked::kEvent) handle(event);
      continue;
    }
    bool found = false;
    for (const pid_t tid : unstopped()) found |= look_at(tid, Blocking::kNo);
    const timespec pause{.tv_sec = 0, .tv_nsec = kHeldSignalLookNs};
    if (!found) ::nanosleep(&pause, nullptr);
  }
  wait.arm(0);
}

void TraceTree::Implementation::consume_held_stops() {
  std::vector<ChildEvent> news;
  for (auto& [tid, mark] : marks) consume_held_stop(tid, mark, news);
  for (const ChildEvent& event : news) handle(event);
}

void TraceTree::Implementation::consume_held_stop(pid_t tid, ThreadMark& mark,
                                                  std::vector<ChildEvent>& news) {
  const StopKind stop = find(tid)->stop;
  if (mark.consumed || (stop != StopKind::kInterrupt && stop != StopKind::kGroupStop)) return;
  ChildEvent event;
  mark.consumed = wait.consume(tid, event) == Peeked::kEvent;
  // Killed meanwhile: what was taken away is its exit stop or its end.
  const bool same = mark.consumed && !event.ended() && event.event() == PTRACE_EVENT_STOP;
  if (mark.consumed && !same) news.push_back(event);
}

// waitid shows a tracer the stop of a thread before it shows that the process was continued.
void TraceTree::Implementation::note_continued() {
  std::vector<ChildEvent> news;
  for (auto& [pid, process] : processes) {
    const auto leader = process.threads.find(pid);
    if (pid == root || leader == process.threads.end()) continue;
    const TracedThread& thread = leader->second;
    if (thread.stop == StopKind::kSignal) {
      // That stop must not be taken away; see wait_beside_held_signals().
      process.continued = thread.signal == SIGCONT;
    } else {
      consume_held_stop(pid, marks[pid], news);
      process.continued = wait.is_continued(pid);
    }
  }
  for (const ChildEvent& event : news) handle(event);
}

void TraceTree::Implementation::report_gone() {
  while (!gone.empty()) {
    const auto [pid, wait_status] = gone.front();
    gone.erase(gone.begin());
    if (!detaching) observer.on_process_gone(pid, wait_status);
  }
}

// What is read of a frozen tree must know who has ended until then. The root's end waits: it
// changes what is to be done at all.
void TraceTree::Implementation::report_ended_children() {
  const auto roots = std::stable_partition(gone.begin(), gone.end(),
                                           [this](const auto& end) { return end.first != root; });
  std::vector<std::pair<pid_t, int>> children(gone.begin(), roots);
  gone.erase(gone.begin(), roots);
  for (const auto& [pid, wait_status] : children) observer.on_process_gone(pid, wait_status);
}

TracedThread* TraceTree::Implementation::find(pid_t tid) {
  const auto mark = marks.find(tid);
  if (mark == marks.end()) return nullptr;
  return &processes.find(mark->second.pid)->second.threads.find(tid)->second;
}

TracedThread& TraceTree::Implementation::add_thread(TracedProcess& process, pid_t tid, bool fresh) {
  marks[tid] = {.pid = process.pid, .fresh = fresh, .listening = false, .consumed = false};
  TracedThread& thread = process.threads[tid];
  thread = {};
  thread.tid = tid;
  thread.pid = process.pid;
  return thread;
}

// First news of a thread that the kernel attached for us when it was created.
TracedThread& TraceTree::Implementation::admit(pid_t tid) {
  pid_t maker = 0;
  if (const auto at = announced.find(tid); at != announced.end()) {
    maker = at->second;
    announced.erase(at);
  } else {
    unannounced.insert(tid);
  }
  for (auto& [pid, process] : processes) {
    if (is_thread_of(pid, tid)) return add_thread(process, tid, true);
  }
  const TracedThread* known_maker = find(maker);
  TracedProcess& process = processes[tid];
  process.pid = tid;
  process.parent = known_maker != nullptr ? known_maker->pid : parent_of(tid);
  // Same address space as its parent had, so code that served there serves here.
  if (const auto site = sites.find(process.parent); site != sites.end()) {
    InjectionSite copy = site->second;
    copy.executions = 0;
    if (processes[process.parent].executions == site->second.executions) sites[tid] = copy;
  }
  return add_thread(process, tid, true);
}

void TraceTree::Implementation::end_vfork_wait(pid_t child) {
  const auto at = vfork_waits.find(child);
  if (at == vfork_waits.end()) return;
  if (TracedThread* waiter = find(at->second)) waiter->vfork_wait = false;
  vfork_waits.erase(at);
}

void TraceTree::Implementation::remove_thread(pid_t tid, int wait_status) {
  const auto mark = marks.find(tid);
  if (mark == marks.end()) return;
  const pid_t pid = mark->second.pid;
  TracedProcess& process = processes[pid];
  process.threads.erase(tid);
  marks.erase(mark);
  if (!process.threads.empty()) return;
  const auto churn = churns.find(pid);
  const bool others_live =
      !detaching && churn != churns.end() && churn->second.threads.loose && adopt_threads(pid);
  if (!others_live) remove_process(pid, wait_status);
}

void TraceTree::Implementation::remove_process(pid_t pid, int wait_status) {
  const auto at = processes.find(pid);
  if (at == processes.end()) return;
  for (const auto& [tid, thread] : at->second.threads) marks.erase(tid);
  processes.erase(at);
  end_vfork_wait(pid);
  unheld.erase(pid);
  sites.erase(pid);
  churns.erase(pid);
  adopted.erase(pid);
  gone.emplace_back(pid, wait_status);
}

void TraceTree::Implementation::handle(const ChildEvent& event) {
  if (event.ended()) return handle_end(event);
  TracedThread* known = find(event.tid);
  TracedThread& thread = known != nullptr ? *known : admit(event.tid);
  handle_stop(thread, marks[event.tid], event);
}

void TraceTree::Implementation::handle_stop(TracedThread& thread, ThreadMark& mark,
                                            const ChildEvent& event) {
  mark.listening = false;
  mark.consumed = false;
  thread.signal = 0;
  switch (event.event()) {
    case PTRACE_EVENT_STOP:
      thread.stop = is_stop_signal(event.signal()) ? StopKind::kGroupStop : StopKind::kInterrupt;
      if (thread.stop == StopKind::kGroupStop) thread.signal = event.signal();
      note_job_control(thread);
      if (thread.stop == StopKind::kInterrupt) mend_interrupted_call(thread.tid);
      if (mark.fresh) greet(thread, mark);
      return settle(thread, mark);
    case PTRACE_EVENT_CLONE:
    case PTRACE_EVENT_FORK:
    case PTRACE_EVENT_VFORK:
      handle_birth(thread, event.event());
      break;
    case PTRACE_EVENT_EXEC:
      return handle_execution(event.tid);
    case PTRACE_EVENT_EXIT:
      return handle_exit_stop(thread);
    case 0:
      if (event.signal() == (SIGTRAP | 0x80)) {  // the end of an injection that was given up
        ptrace_call(PTRACE_SETOPTIONS, event.tid, 0, static_cast<uintptr_t>(options));
        break;
      }
      thread.stop = StopKind::kSignal;
      thread.signal = event.signal();
      ++counters.signals;
      note_crash(thread);
      // One that makes processes or threads all the time wants them on the other processors.
      if (!holding && !churns.contains(thread.pid)) follower.note_signal(thread.pid, thread.tid);
      return settle(thread, mark);
    default:
      break;
  }
  // The middle of a system call is no state to freeze in: stop again at its end.
  if (holding && thread.pid != dying) ptrace_interrupt(thread.tid);
  thread.stop = StopKind::kRunning;
  ptrace_continue(thread.tid, 0);
}

// The kernel takes back a process's group stop as a whole (SIGCONT), and each of its threads tells.
void TraceTree::Implementation::note_job_control(TracedThread& thread) {
  const bool stopped = thread.stop == StopKind::kGroupStop;
  if (!stopped && thread.job_stopped) {
    for (auto& [tid, other] : processes[thread.pid].threads) other.job_stopped = false;
  }
  thread.job_stopped = stopped;
}

// The child's own first stop brings it into the tree; it may come before or after this.
void TraceTree::Implementation::handle_birth(TracedThread& thread, int event) {
  const auto child = static_cast<pid_t>(ptrace_event_message(thread.tid));
  if (child != 0 && unannounced.erase(child) == 0 && !marks.contains(child)) {
    announced[child] = thread.tid;
  }
  note_churn(thread, event);
  if (event != PTRACE_EVENT_VFORK) return;
  // Seen already, and either gone or past its execve: nobody waits for it any more.
  const auto process = processes.find(child);
  const bool runs_on = process != processes.end() && process->second.executions == 0;
  if (!announced.contains(child) && !runs_on) return;
  thread.vfork_wait = true;
  vfork_waits[child] = thread.tid;
  if (holding) freeze_failure = first_vfork_wait(dying);
}

// Threads and children that are born while nobody follows are not stopped, and cost nothing. A kill
// in that time finds some of the threads without us: see follows_all_threads(). Children outlive
// it, and are found as long as their parent is known.
void TraceTree::Implementation::note_churn(const TracedThread& maker, int event) {
  Churn& both = churns[maker.pid];
  BirthChurn& churn = event == PTRACE_EVENT_CLONE ? both.threads : both.children;
  const uint64_t now = now_ns();
  if (!churn.loose) {
    if (churn.births++ == 0) churn.window_ns = now;
    if (churn.births < kChurnBirths) return;
    const bool fast = now - churn.window_ns < kChurnWindowNs;
    churn.births = 0;
    if (!fast) {
      churn.repeats = 0;
      return;
    }
    churn.loose = true;
    churn.loose_until_ns = now + (kLooseNs << std::min(churn.repeats, kLooseDoublingsMax));
    ++churn.repeats;
    ++counters.loosened;
  }
  ptrace_call(PTRACE_SETOPTIONS, maker.tid, 0, static_cast<uintptr_t>(options_for(both)));
}

long TraceTree::Implementation::options_for(const Churn& churn) const {
  long followed = options;
  if (churn.threads.loose) followed &= ~PTRACE_O_TRACECLONE;
  if (churn.children.loose) followed &= ~(PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK);
  return followed;
}

void TraceTree::Implementation::greet(TracedThread& thread, ThreadMark& mark) {
  mark.fresh = false;
  const bool is_process = thread.tid == thread.pid;
  ++(is_process ? counters.forks : counters.clones);
  if (detaching) return;
  if (is_process) {
    observer.on_new_process(processes[thread.pid]);
  } else {
    observer.on_new_thread(thread);
  }
}

// execve by any thread leaves the process with one thread, which has the leader's number.
void TraceTree::Implementation::handle_execution(pid_t tid) {
  // ptrace gives ESRCH at this stop until it has been waited for, when the number has changed
  // (looks_like_a_spurious_pid in kernel/ptrace.c). It carries no signal that could be lost.
  ChildEvent taken;
  wait.consume(tid, taken);
  const auto former = static_cast<pid_t>(ptrace_event_message(tid));
  TracedProcess& process = processes[marks[tid].pid];
  std::vector<pid_t> others;
  for (const auto& [id, thread] : process.threads) {
    if (id != tid) others.push_back(id);
  }
  for (const pid_t id : others) {
    process.threads.erase(id);
    marks.erase(id);
  }
  if (former != tid && injection && injection->tid == former) injection.reset();
  ++process.executions;
  ++counters.execs;
  sites.erase(process.pid);
  churns.erase(process.pid);  // it has one thread now, and that one is attached
  end_vfork_wait(process.pid);
  process.threads[tid].vfork_wait = false;
  if (!detaching) observer.on_exec(process);
  TracedThread* thread = find(tid);
  if (thread == nullptr) return;
  if (holding && thread->pid != dying) ptrace_interrupt(tid);
  thread->stop = StopKind::kRunning;
  ptrace_continue(tid, 0);
}

void TraceTree::Implementation::handle_exit_stop(TracedThread& thread) {
  const pid_t tid = thread.tid;
  const pid_t pid = thread.pid;
  thread.stop = StopKind::kExit;
  thread.exit_code = static_cast<int>(ptrace_event_message(tid));
  thread.vfork_wait = false;
  marks[tid].fresh = false;
  ++counters.exits;
  if (injection && injection->tid == tid) {
    // Killed in the middle of an injected call: whoever reads it now must see its own registers.
    ptrace_set_registers(tid, injection->registers);
    ptrace_set_signal_mask(tid, injection->signal_mask);
  }
  // A thread that it made and that has not shown itself yet lives on after it.
  std::vector<pid_t> made;
  for (const auto& [child, maker] : announced) {
    if (maker == tid && is_thread_of(pid, child)) made.push_back(child);
  }
  for (const pid_t child : made) admit(child);
  // No signal can be lost here any more, so the stop may be taken away from waitid.
  ExitDecision decision = ExitDecision::kRelease;
  if (!detaching && !unheld.contains(pid)) {
    decision = observer.on_exit_stop(processes[pid], *find(tid));
  }
  if (!detaching && processes[pid].threads.size() == 1) adopt_orphans(pid);
  const TracedThread* after = find(tid);
  if (after == nullptr || after->stop != StopKind::kExit) return;
  if (decision == ExitDecision::kRelease) return let_exit(tid);
  ChildEvent taken;
  if (wait.consume(tid, taken) == Peeked::kEvent && taken.ended()) return handle_end(taken);
  marks[tid].consumed = true;
}

// Children whose parent is gone can be found no more.
void TraceTree::Implementation::adopt_orphans(pid_t parent) {
  const auto churn = churns.find(parent);
  if (churn == churns.end() || !churn->second.children.loose) return;
  try {
    adopt_children(parent);
  } catch (const SysError&) {
    return;  // one that executes a program just now, or is traced by another, is left alone
  }
  if (holding) interrupt_all();
}

// Detaching instead of continuing spares the thread a second stop as a zombie of ours, and our
// process a SIGCHLD; the real parent sees the end by itself, at once.
void TraceTree::Implementation::let_exit(pid_t tid) {
  const TracedThread* thread = find(tid);
  if (thread == nullptr || thread->stop != StopKind::kExit) return;
  // ESRCH: killed once more, and on kernels where that ends the stop. Its end is still to come.
  if (ptrace_detach(tid, 0) == -ESRCH) {
    find(tid)->stop = StopKind::kRunning;
    return;
  }
  remove_thread(tid, thread->exit_code);
}

// A zombie. Reaping it shows its end to the real parent (do_notify_parent in kernel/signal.c).
void TraceTree::Implementation::handle_end(const ChildEvent& event) {
  ChildEvent taken;
  wait.consume(event.tid, taken);
  announced.erase(event.tid);
  const TracedThread* thread = find(event.tid);
  if (thread == nullptr) return;
  // A leader is reported only when all other threads are gone.
  if (thread->pid == event.tid) return remove_process(event.tid, wait_status_of(event));
  remove_thread(event.tid, wait_status_of(event));
}

// waitid knows nothing of a thread: another thread's execve took its place (and the leader's
// number), or, for a leader, our own process was its parent and reaped it.
void TraceTree::Implementation::handle_vanished(pid_t tid) {
  announced.erase(tid);
  const TracedThread* thread = find(tid);
  if (thread == nullptr) return;
  const pid_t pid = thread->pid;
  if (tid == pid) return remove_process(pid, 0);
  TracedProcess& process = processes[pid];
  if (!process.threads.contains(pid)) add_thread(process, pid, false);
  remove_thread(tid, 0);
}

void TraceTree::Implementation::settle(TracedThread& thread, ThreadMark& mark) {
  if (holding && thread.pid != dying) return;
  resume(thread, mark);
}

// ESRCH everywhere here: it was killed meanwhile, and its exit stop or end will be reported.
void TraceTree::Implementation::resume(TracedThread& thread, ThreadMark& mark) {
  const StopKind stop = thread.stop;
  mark.consumed = false;
  if (stop == StopKind::kGroupStop) {
    mark.listening = ptrace_call(PTRACE_LISTEN, thread.tid, 0, 0) == 0;
    if (!mark.listening) thread.stop = StopKind::kRunning;
    return;
  }
  if (stop != StopKind::kInterrupt && stop != StopKind::kSignal) return;
  thread.stop = StopKind::kRunning;
  ptrace_continue(thread.tid, stop == StopKind::kSignal ? thread.signal : 0);
}

}  // namespace replpage
