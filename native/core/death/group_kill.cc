#include "core/death/group_kill.h"

#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <climits>
#include <csignal>
#include <string>
#include <thread>

#include "core/base/clock.h"
#include "core/base/proc_stat.h"
#include "core/base/procfs.h"

namespace replpage {
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

// kill(2) of many holds a lock for reading while it goes from one to the next (kill_something_info
// in kernel/signal.c), and setpgid(2) takes it for writing before it finds that there is no such
// process.
void wait_for_kills_of_many() { (void)::setpgid(INT_MAX, 1); }

// cgroup.kill and memory.oom.group are of the unified hierarchy, and not of its root.
bool is_in_cgroup(pid_t pid) {
  const auto text = read_proc("/proc/" + std::to_string(pid) + "/cgroup");
  if (!text) return false;
  const size_t unified = text->find("0::/");
  return unified != std::string::npos && unified + 4 < text->size() && (*text)[unified + 4] != '\n';
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

bool is_killed_along(pid_t child, pid_t root) {
  constexpr uint64_t kSameKillUs = 200;
  constexpr auto kLook = std::chrono::microseconds(50);
  if (kill_is_pending(root)) return true;
  wait_for_kills_of_many();
  if (kill_is_pending(root)) return true;
  if (!is_in_cgroup(child)) return false;
  // Nothing tells that a cgroup is through with it; parents come before children there.
  for (const uint64_t ends = now_us() + kSameKillUs; now_us() < ends;) {
    std::this_thread::sleep_for(kLook);
    if (kill_is_pending(root)) return true;
  }
  return false;
}

}  // namespace replpage
