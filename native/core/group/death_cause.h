// What a wait status says about an end.
#pragma once

#include <sys/types.h>

#include <string>

#include "core/group/group_types.h"
#include "core/image/process_image.h"

namespace replpage {

DeathCause cause_of(int wait_status);

// "ended by signal 11", "exited with status 1"
std::string describe_end(int wait_status);

// Whether a death of this cause is the program's own doing: as a rule it would come again.
[[nodiscard]] inline bool is_own_doing(DeathCause cause) {
  return cause == DeathCause::kCrash || cause == DeathCause::kExit;
}

// Whether the process was meant to end: the group ends with it, unless it was asked to go on.
[[nodiscard]] inline bool is_wanted(DeathCause cause) {
  return cause == DeathCause::kExit || cause == DeathCause::kSignal;
}

// Which crash signal (SIGSEGV, SIGABRT, ...) waits to be delivered to a process that does not block
// it: a replica of that moment would crash again at once. Empty: none.
std::string crash_at_hand(const ProcessImage& process);

}  // namespace replpage
