// How much memory a process has, at little cost.
#pragma once

#include <sys/types.h>

#include <cstdint>

namespace replpage {

struct ResidentPages {
  uint64_t own = 0, shared = 0;  // shared with others, or with files
};

// From /proc/PID/statm (proc_pid_statm(5)); none when the process is gone.
ResidentPages resident_pages(pid_t pid);

}  // namespace replpage
