// The epoch that a replica is to run from. Its state is with the keeper when these return.
#pragma once

#include "core/death/hand_over.h"

namespace replpage {

// How long threads of a dying group may take to reach their stops: one in a disk wait is late.
inline constexpr uint64_t kDeathDeadlineUs = 2'000'000;

// All on the tracer thread, with worker_mutex held. They throw KeeperLost too.

// Takes one more epoch from a group that stands still for good: at its exit stops with the first
// of them seen at `seen_us`. Throws SysError where the memory is gone already (the OOM reaper) or
// something new cannot be replicated.
HandOver capture_last_epoch(GroupContext& context, uint64_t seen_us);

// The same of a group that is frozen and could run on. A replica on another node is at that epoch
// when this returns: a link that breaks sooner costs the replica, and not the group.
HandOver capture_planned_epoch(GroupContext& context);

// The last epoch that the keeper holds, with the files that are still open in the dead process and
// may stand for those of then.
HandOver committed_epoch(GroupContext& context);

}  // namespace replpage
