// Which of our processes the OOM killer takes (proc_pid_oom_score_adj(5)).
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <string_view>

#include "core/base/unique_fd.h"

namespace replpage {

// Of this process. Where the right to is missing (CAP_SYS_RESOURCE) nothing changes: `replpage
// doctor` says so, once for the machine.
inline void set_oom_score(std::string_view value) {
  const UniqueFd fd(::open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC));
  if (fd.valid()) (void)!::write(fd.get(), value.data(), value.size());
}

// Without CAP_SYS_RESOURCE the score may be brought back to what it was, but not below.
inline void protect_from_oom_killer() {
  set_oom_score("0");
  set_oom_score("-1000");
}

}  // namespace replpage
