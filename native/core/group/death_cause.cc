#include "core/group/death_cause.h"

#include <sys/wait.h>

#include <algorithm>
#include <csignal>

namespace replpage {

DeathCause cause_of(int wait_status) {
  if (!WIFSIGNALED(wait_status)) return DeathCause::kExit;
  switch (WTERMSIG(wait_status)) {
    case SIGKILL:
      return DeathCause::kSigkill;
    case SIGSEGV:
    case SIGABRT:
    case SIGBUS:
    case SIGILL:
    case SIGFPE:
    case SIGSYS:
    case SIGTRAP:
      return DeathCause::kCrash;
    default:
      return DeathCause::kSignal;
  }
}

std::string describe_end(int wait_status) {
  return WIFSIGNALED(wait_status)
             ? "ended by signal " + std::to_string(WTERMSIG(wait_status))
             : "exited with status " + std::to_string(WEXITSTATUS(wait_status));
}

namespace {

int crash_signal_in(const std::vector<SignalInfo>& queue, uint64_t blocked) {
  const auto found = std::find_if(queue.begin(), queue.end(), [blocked](const SignalInfo& info) {
    const int signal = signal_of(info);
    return cause_of(signal) == DeathCause::kCrash && (blocked >> (signal - 1) & 1) == 0;
  });
  return found == queue.end() ? 0 : signal_of(*found);
}

}  // namespace

std::string crash_at_hand(const ProcessImage& process) {
  uint64_t blocked_by_all = ~uint64_t{0};
  for (const ThreadImage& thread : process.threads) {
    blocked_by_all &= thread.blocked_signals;
    const int signal = crash_signal_in(thread.pending, thread.blocked_signals);
    if (signal != 0) {
      return "thread " + std::to_string(thread.host_tid) + " is about to get signal " +
             std::to_string(signal);
    }
  }
  const int signal = crash_signal_in(process.pending, blocked_by_all);
  return signal == 0 ? "" : "it is about to get signal " + std::to_string(signal);
}

}  // namespace replpage
