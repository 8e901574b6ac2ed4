#include "core/base/urgency.h"

#include <sched.h>

namespace replpage {

bool run_before_others(pid_t tid) {
  const sched_param lowest{.sched_priority = 1};
  return ::sched_setscheduler(tid, SCHED_RR | SCHED_RESET_ON_FORK, &lowest) == 0;
}

void run_as_others() {
  const sched_param none{.sched_priority = 0};
  (void)::sched_setscheduler(0, SCHED_OTHER, &none);
}

}  // namespace replpage
