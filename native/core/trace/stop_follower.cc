#include "core/trace/stop_follower.h"

#include <exception>
#include <string>

#include "core/base/clock.h"
#include "core/base/proc_stat.h"

namespace replpage {
namespace {

// Looking where a thread runs takes about 15 us, so it is done once for so many stops, and only
// when they came within this time.
constexpr uint32_t kStopsPerLook = 8;
constexpr uint64_t kQuickNs = 40'000'000;

// On which processor it ran last, or -1.
int processor_of(pid_t pid, pid_t tid) {
  const auto stat = ProcStat::of(pid, tid);
  return stat ? static_cast<int>((*stat)[ProcStat::kProcessor]) : -1;
}

cpu_set_t only(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<size_t>(cpu), &set);
  return set;
}

}  // namespace

void StopFollower::note_signal(pid_t pid, pid_t tid) {
  if (++stops_ < kStopsPerLook) return;
  stops_ = 0;
  const uint64_t now = now_ns();
  const bool quick = now - since_ns_ < kQuickNs;
  since_ns_ = now;
  if (!quick) return leave();
  try {
    follow(pid, tid);
  } catch (const std::exception&) {  // slower, nothing else
    leave();
  }
}

void StopFollower::follow(pid_t pid, pid_t tid) {
  const int cpu = processor_of(pid, tid);
  if (cpu < 0 || cpu >= CPU_SETSIZE || cpu == cpu_) return;
  if (cpu_ < 0 && ::sched_getaffinity(0, sizeof usual_, &usual_) != 0) return;
  if (!CPU_ISSET(static_cast<size_t>(cpu), &usual_)) return leave();
  const cpu_set_t set = only(cpu);
  if (::sched_setaffinity(0, sizeof set, &set) != 0) return leave();
  cpu_ = cpu;
}

void StopFollower::leave() noexcept {
  if (cpu_ < 0) return;
  (void)::sched_setaffinity(0, sizeof usual_, &usual_);
  cpu_ = -1;
}

}  // namespace replpage
