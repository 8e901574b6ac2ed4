// Acting with the rights of whoever asked (rule 10).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/base/unique_fd.h"

namespace replpage {

struct CallerRights {
  uid_t uid = 0;
  gid_t gid = 0;
  std::vector<gid_t> groups;
};

// Opens a file with O_CLOEXEC as that user: file system ids of a thread made for it
// (setfsuid(2)), so that no other thread ever has them. Never waits: a FIFO without a reader is an
// error (ENXIO). Throws SysError naming the path.
UniqueFd open_with_rights(const std::string& path, int flags, int mode, const CallerRights& rights);

// Whether that user may attach to the process: the kernel itself decides, by the check that
// pidfd_getfd(2) makes (PTRACE_MODE_ATTACH_REALCREDS), asked from a thread with the user's ids and
// without capabilities unless the user is root. Throws SysError (ESRCH: no such process).
bool may_trace(pid_t pid, const CallerRights& rights);

// When the process began, in clock ticks since boot (proc_pid_stat(5)): with its pid it names the
// process for good. nullopt: it is gone.
std::optional<uint64_t> start_time_of(pid_t pid);

}  // namespace replpage
