#include "core/trace/trace_tree.h"

#include <csignal>

#include "core/trace/ptrace_call.h"
#include "core/trace/tree_state.h"

namespace replpage {

TraceTree::TraceTree(TraceObserver& observer)
    : implementation_(std::make_unique<Implementation>(observer)) {}

TraceTree::~TraceTree() { implementation_->detach(); }

void TraceTree::seize(pid_t root, bool trace_exits) { implementation_->seize(root, trace_exits); }

void TraceTree::detach() { implementation_->detach(); }

void TraceTree::wait_events(uint64_t deadline_ns) { implementation_->wait_events(deadline_ns); }

void TraceTree::wake() { implementation_->wait.wake(); }

FreezeResult TraceTree::freeze(uint64_t deadline_us) {
  return implementation_->freeze(deadline_us, 0);
}

void TraceTree::thaw() { implementation_->thaw(); }

bool TraceTree::stands_still() const { return implementation_->who_left().empty(); }

FreezeResult TraceTree::freeze_around_death(pid_t dying, uint64_t deadline_us) {
  return implementation_->freeze(deadline_us, dying);
}

void TraceTree::release_exit(pid_t tid) { implementation_->let_exit(tid); }

// SIGKILL ends every stop but the exit stop.
void TraceTree::kill_process(pid_t pid) {
  Implementation& tree = *implementation_;
  const auto at = tree.processes.find(pid);
  if (at == tree.processes.end()) return;
  tree.unheld.insert(pid);
  ::kill(pid, SIGKILL);
  std::vector<pid_t> held;
  for (auto& [tid, thread] : at->second.threads) {
    if (thread.stop == StopKind::kExit) {
      held.push_back(tid);
    } else {
      thread.stop = StopKind::kRunning;
      tree.marks[tid].listening = false;
    }
  }
  for (const pid_t tid : held) tree.let_exit(tid);
}

const std::map<pid_t, TracedProcess>& TraceTree::processes() const {
  return implementation_->processes;
}

pid_t TraceTree::root() const { return implementation_->root; }

bool TraceTree::follows_all_threads(pid_t pid) const {
  const auto churn = implementation_->churns.find(pid);
  return churn == implementation_->churns.end() || !churn->second.threads.loose;
}

bool TraceTree::follows_all_children(pid_t pid) const {
  const auto churn = implementation_->churns.find(pid);
  return churn == implementation_->churns.end() || !churn->second.children.loose;
}

std::string TraceTree::crash_being_handled() { return implementation_->crash_being_handled(); }

TraceCounters TraceTree::counters() const { return implementation_->counters; }

std::optional<long> TraceTree::inject(pid_t tid, long number, std::array<uint64_t, 6> arguments,
                                      std::vector<uint8_t>* argument_data) {
  return implementation_->inject(tid, number, arguments, argument_data);
}

}  // namespace replpage
