// The epoch that a replica is to run from, and what is handed over with it.
#pragma once

#include <vector>

#include "core/base/unique_fd.h"
#include "core/capture/group_context.h"

namespace replpage {

// What the keeper needs to let the replica run. Its pages are the runs of the context.
struct HandOver {
  GroupImage image;
  std::vector<UniqueFd> open_files;  // by position in the image; invalid: opened anew
  std::vector<LazyRange> lazy;       // read from the old process while the replica runs
  bool exact = false;                // nothing is lost
};

// All on the tracer thread, with worker_mutex held.

// Takes one more epoch from a group that stands still for good: at its exit stops with the first
// of them seen at `seen_us`. Throws SysError where the memory is gone already (the OOM reaper) or
// something new cannot be replicated.
HandOver capture_last_epoch(GroupContext& context, uint64_t seen_us);

// The same of a group that is frozen and could run on.
HandOver capture_planned_epoch(GroupContext& context);

// The last epoch that the keeper holds, with the files that are still open in the dead process and
// may stand for those of then.
HandOver committed_epoch(GroupContext& context);

}  // namespace replpage
