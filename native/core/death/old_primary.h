// What becomes of a primary whose replica runs in its stead. Tracer thread only.
#pragma once

#include "core/trace/trace_tree.h"

namespace replpage {

// From here on no instruction of it can run, whatever becomes of us: never two running. It stands
// at its exit stops until let_go().
void kill_old_primary(const TraceTree& tree);

// Ends what is left of it and lets its exit stops go. Its robust locks are handed on: the kernel
// must not mark those in shared memory as orphaned, the replica owns them now (get_robust_list(2)).
void let_old_primary_go(TraceTree& tree);

}  // namespace replpage
