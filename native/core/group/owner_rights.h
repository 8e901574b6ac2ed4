// Whoever asked for a group may have of it only what the kernel would let them trace (rule 10).
#pragma once

#include <sys/types.h>

#include <optional>

#include "core/group/group_types.h"
#include "core/trace/trace_tree.h"

namespace replpage {

// Why the owner must not have a copy of this process; nothing when they may, or when it is gone. A
// process can get out of their reach by execve only: of a set-user-ID program, or of one that they
// may not read. Some 100 us, unless the owner is root.
std::optional<Refusal> owner_refusal(const GroupOptions& options, pid_t pid);

// Whether the tree, which stands still, is the one that was asked for, and all of it the owner's to
// trace: what was checked before it was seized may have been another process. Throws RefusedError,
// SysError (ESRCH: it is another one).
void check_owner(const GroupOptions& options, const TraceTree& tree);

}  // namespace replpage
