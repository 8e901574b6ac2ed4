// Tries a replica out without anybody noticing: it is brought to the point where it would run, and
// runs as far as its first system calls, which are not executed (PTRACE_SYSEMU of ptrace(2)). So
// nothing of it can reach a file, a network or another process.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "core/image/group_image.h"

namespace replpage {

struct DrillRun {
  std::string problem;  // what a thread did instead; empty: nothing is wrong
  uint32_t threads = 0;
  uint32_t calls = 0;  // that got to a system call; the others were still computing
};

// Why it cannot be tried out: something of it would be written to as it runs. Empty: it can be.
std::string why_no_drill(const GroupImage& image);

// The same group without what others could notice while it is restored: names of UNIX sockets,
// locks of files, named pipes.
GroupImage without_outside(GroupImage image);

// Threads of the caller's replica, stopped with the registers that they are to run with. At most
// `run_us`; all stand still afterwards.
DrillRun try_out(const std::vector<pid_t>& threads, uint64_t run_us);

}  // namespace replpage
