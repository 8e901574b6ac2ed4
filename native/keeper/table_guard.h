// A process that shares the keeper's descriptor table and is the last of the namespace to be
// killed.
//
// When keeper and holder are killed together the kernel closes the keeper's descriptors before it
// kills the namespace. Without the guard the last userfaultfd would go then, and processes that
// still run for a moment would read zeros. The kernel kills a namespace in the order of the pids
// (zap_pid_ns_processes), so the guard has the highest there is.
#pragma once

#include <sys/types.h>

namespace replpage {

// Only for the keeper: pid 1, after it has set its own OOM score. Returns its pid in the namespace;
// 0: there is none, and the holder alone keeps the table.
pid_t start_table_guard() noexcept;

// Whether the caller and the guard are the only processes of the namespace. `guard` is the guard's
// pid.
bool is_alone_with(pid_t guard);

}  // namespace replpage
