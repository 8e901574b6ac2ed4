#include "core/death/group_kill.h"

#include <unistd.h>

#include <chrono>
#include <climits>
#include <string>
#include <thread>

#include "core/base/clock.h"
#include "core/base/procfs.h"
#include "core/group/death_cause.h"

namespace replpage {
namespace {

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
