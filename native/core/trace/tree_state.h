// What TraceTree knows. Private to trace/: its parts are attachment (tree_attach.cc), events
// (tree_events.cc), freezing (tree_freeze.cc) and injection (remote_call.cc).
#pragma once

#include <map>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "core/trace/child_wait.h"
#include "core/trace/injection_site.h"
#include "core/trace/stop_follower.h"
#include "core/trace/trace_tree.h"

namespace replpage {

// Bookkeeping beside TracedThread that the owner need not see.
struct ThreadMark {
  pid_t pid = 0;
  bool fresh = false;      // created under our eyes, its first stop is still to come
  bool listening = false;  // in group stop with PTRACE_LISTEN
  bool consumed = false;   // its stop has been taken away from waitid
};

// Registers of a thread while a call is injected, so that its death in between does not lose them.
struct InjectionState {
  pid_t tid = 0;
  user_regs_struct registers{};
  uint64_t signal_mask = 0;
};

// How fast a process creates threads, or children. Following each costs three or more stops, so a
// process that churns through them is left alone with them for a while; freezes find those that
// live.
struct BirthChurn {
  uint64_t window_ns = 0;  // start of the present count
  uint32_t births = 0;
  uint32_t repeats = 0;  // how often following was resumed in vain
  bool loose = false;    // some may not be attached
  uint64_t loose_until_ns = 0;
};

struct Churn {
  BirthChurn threads, children;
};

struct TraceTree::Implementation {
  explicit Implementation(TraceObserver& its_observer) : observer(its_observer) {}

  // tree_attach.cc
  void seize(pid_t pid, bool trace_exits);
  bool seize_tree(pid_t pid);
  bool seize_process(pid_t pid, pid_t parent);
  bool seize_thread(TracedProcess& process, pid_t tid);
  bool seize_children(pid_t pid);
  bool adopt_threads(pid_t pid);
  bool adopt_children(pid_t pid);
  void detach() noexcept;
  void detach_all(uint64_t deadline_ns);
  void detach_stopped(pid_t tid) noexcept;

  // tree_events.cc
  void wait_events(uint64_t deadline_ns);
  void wait_beside_held_signals(uint64_t deadline_ns);
  void handle(const ChildEvent& event);
  void handle_stop(TracedThread& thread, ThreadMark& mark, const ChildEvent& event);
  void handle_birth(TracedThread& thread, int event);
  void note_churn(const TracedThread& maker, int event);
  long options_for(const Churn& churn) const;
  void handle_execution(pid_t tid);
  void handle_exit_stop(TracedThread& thread);
  void adopt_orphans(pid_t parent);
  void handle_end(const ChildEvent& event);
  void handle_vanished(pid_t tid);
  void note_crash(TracedThread& thread);
  std::string crash_being_handled();
  void note_job_control(TracedThread& thread);
  void settle(TracedThread& thread, ThreadMark& mark);
  void greet(TracedThread& thread, ThreadMark& mark);
  void resume(TracedThread& thread, ThreadMark& mark);
  void let_exit(pid_t tid);
  TracedThread* find(pid_t tid);
  TracedThread& admit(pid_t tid);
  TracedThread& add_thread(TracedProcess& process, pid_t tid, bool fresh);
  void remove_thread(pid_t tid, int wait_status);
  void remove_process(pid_t pid, int wait_status);
  void end_vfork_wait(pid_t child);
  void report_gone();
  void report_ended_children();

  // tree_freeze.cc
  FreezeResult freeze(uint64_t deadline_us, pid_t dying);
  void thaw();
  std::string first_vfork_wait(pid_t except) const;
  void let_vforks_finish(pid_t around, uint64_t deadline_ns);
  bool still_stands(const TracedThread& thread, const ThreadMark& mark);
  // Threads of a frozen tree that were killed and have left the stops they were found in.
  std::vector<pid_t> who_left() const;
  void interrupt_all();
  std::vector<pid_t> unstopped() const;
  std::string collect_stops(uint64_t deadline_ns);
  bool look_at(pid_t tid, Blocking blocking);
  bool adopt_all_strangers();
  bool adopt_unannounced();
  void follow_again();
  std::string why_not_stopped(pid_t tid);
  void consume_held_stops();
  // Takes the stop that a kept thread stands at away from waitid, unless it carries a signal. What
  // was taken instead, of a thread that was killed meanwhile, becomes news.
  void consume_held_stop(pid_t tid, ThreadMark& mark, std::vector<ChildEvent>& news);
  void note_continued();

  // remote_call.cc
  std::optional<long> inject(pid_t tid, long number, std::array<uint64_t, 6> arguments,
                             std::vector<uint8_t>* data);
  InjectionSite& site_for(const TracedThread& thread, uint64_t size);
  std::optional<long> run_injected(const InjectionState& state, const user_regs_struct& registers,
                                   bool self_completing);
  std::optional<long> run_call(pid_t tid);
  bool take_back(const InjectionState& state);

  TraceObserver& observer;
  ChildWait wait;
  StopFollower follower;
  std::map<pid_t, TracedProcess> processes;
  std::unordered_map<pid_t, ThreadMark> marks;
  std::unordered_map<pid_t, pid_t> announced;    // child not seen yet -> thread that made it
  std::unordered_set<pid_t> unannounced;         // child seen before its maker's event
  std::unordered_map<pid_t, pid_t> vfork_waits;  // child -> thread that waits for it
  std::unordered_set<pid_t> unheld;              // processes whose exit stops are not asked about
  std::unordered_map<pid_t, InjectionSite> sites;
  std::unordered_map<pid_t, Churn> churns;
  std::unordered_set<pid_t> adopted;        // found late: may have made others before that
  std::vector<std::pair<pid_t, int>> gone;  // on_process_gone still to be called
  std::optional<InjectionState> injection;
  pid_t root = 0;
  long options = 0;
  bool adopting = false;       // threads attached now are new to the observer
  bool detaching = false;      // the observer is not asked or told any more
  bool holding = false;        // frozen, or freezing: stops are kept
  pid_t dying = 0;             // while holding: this process goes on to its exit stops
  std::string freeze_failure;  // set by events that make a freeze hopeless
  TraceCounters counters;
};

}  // namespace replpage
