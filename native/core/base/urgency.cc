#include "core/base/urgency.h"

#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace replpage {
namespace {

// struct sched_attr of linux/sched/types.h, version 0: sched_setattr(2).
struct SchedAttributes {
  uint32_t size = 48;
  uint32_t policy = SCHED_OTHER;
  uint64_t flags = 1;  // SCHED_FLAG_RESET_ON_FORK
  int32_t nice = 0;
  uint32_t priority = 0;
  uint64_t runtime_ns = 0;  // the time slice, since Linux 6.12
  uint64_t deadline_ns = 0, period_ns = 0;
};
static_assert(sizeof(SchedAttributes) == 48);

constexpr int kNiceFirst = -20;
constexpr uint64_t kShortestSliceNs = 100'000;  // the kernel takes no less

}  // namespace

bool run_before_others(pid_t tid) {
  const sched_param lowest{.sched_priority = 1};
  return ::sched_setscheduler(tid, SCHED_RR | SCHED_RESET_ON_FORK, &lowest) == 0;
}

bool run_promptly() {
  SchedAttributes attributes;
  attributes.nice = kNiceFirst;
  attributes.runtime_ns = kShortestSliceNs;
  return ::syscall(SYS_sched_setattr, 0, &attributes, 0) == 0;
}

void run_as_others(pid_t tid) {
  const sched_param none{.sched_priority = 0};
  (void)::sched_setscheduler(tid, SCHED_OTHER, &none);
}

OnOneCpu::OnOneCpu() {
  const int cpu = ::sched_getcpu();
  if (cpu < 0 || cpu >= CPU_SETSIZE || ::sched_getaffinity(0, sizeof before_, &before_) != 0) {
    return;
  }
  CPU_SET(static_cast<size_t>(cpu), &one_);
  pinned_ = ::sched_setaffinity(0, sizeof one_, &one_) == 0;
}

OnOneCpu::~OnOneCpu() {
  if (pinned_) (void)::sched_setaffinity(0, sizeof before_, &before_);
}

bool OnOneCpu::take(pid_t tid) const {
  return pinned_ && ::sched_setaffinity(tid, sizeof one_, &one_) == 0;
}

}  // namespace replpage
