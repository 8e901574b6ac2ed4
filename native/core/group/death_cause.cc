#include "core/group/death_cause.h"

#include <sys/wait.h>

#include <algorithm>
#include <csignal>

#include "core/base/proc_stat.h"
#include "core/base/procfs.h"

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

// The pending masks are empty again as soon as the main thread has seen the signal, long before its
// exit stop is known here. The last field of /proc/PID/stat has the code of an exit that has begun
// (do_task_stat in fs/proc/array.c), from the moment of the kill on.
bool is_ending_by_kill(pid_t pid) {
  const auto stat = ProcStat::of(pid);
  if (!stat) return true;
  const int status = static_cast<int>((*stat)[ProcStat::kExitCode]);
  return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
}

}  // namespace

bool kill_is_pending(pid_t pid) {
  const auto status = read_proc("/proc/" + std::to_string(pid) + "/status");
  if (!status) return true;
  constexpr uint64_t kKillBit = 1ull << (SIGKILL - 1);
  for (const char* key : {"SigPnd", "ShdPnd"}) {
    const auto mask = field_of(*status, key);
    if (mask && (std::stoull(std::string(*mask), nullptr, 16) & kKillBit) != 0) return true;
  }
  return is_ending_by_kill(pid);
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
