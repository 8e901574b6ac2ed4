#include "core/base/urgency.h"

#include <sys/resource.h>
#include <unistd.h>

namespace replpage {
namespace {

void set_nice(pid_t tid, int nice) {
  (void)::setpriority(PRIO_PROCESS, static_cast<id_t>(tid == 0 ? ::gettid() : tid), nice);
}

}  // namespace

bool run_before_others(pid_t tid) {
  const sched_param lowest{.sched_priority = 1};
  return ::sched_setscheduler(tid, SCHED_RR | SCHED_RESET_ON_FORK, &lowest) == 0;
}

void run_as_others(pid_t tid) {
  const sched_param none{.sched_priority = 0};
  (void)::sched_setscheduler(tid, SCHED_OTHER, &none);
}

void run_after_others(pid_t tid) { set_nice(tid, 10); }

void run_beside_others(pid_t tid) { set_nice(tid, 0); }

cpu_set_t own_cpus() {
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  (void)::sched_getaffinity(0, sizeof cpus, &cpus);
  return cpus;
}

OnOneCpu::OnOneCpu() {
  const int cpu = ::sched_getcpu();
  if (cpu < 0 || cpu >= CPU_SETSIZE || ::sched_getaffinity(0, sizeof before_, &before_) != 0) {
    return;
  }
  CPU_SET(static_cast<size_t>(cpu), &one_);
  pinned_ = ::sched_setaffinity(0, sizeof one_, &one_) == 0;
}

OnOneCpu::~OnOneCpu() { leave(0); }

bool OnOneCpu::take(pid_t tid) const {
  return pinned_ && ::sched_setaffinity(tid, sizeof one_, &one_) == 0;
}

void OnOneCpu::leave(pid_t tid) const {
  if (pinned_) (void)::sched_setaffinity(tid, sizeof before_, &before_);
}

}  // namespace replpage
