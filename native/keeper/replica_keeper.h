// The keeper: pid 1 of the replica's namespace. Follows the tracer's messages until promotion, then
// lives on with the group it let run, as its init.
#pragma once

#include "keeper/keeper_setup.h"

namespace replpage {

// Runs in the cloned process until everything in the namespace has ended; returns the exit code.
// Before promotion any failure ends the replica, and so does the tracer's or the holder's end: a
// stale replica is of no use, and the primary runs on.
int run_keeper(KeeperSetup setup) noexcept;

}  // namespace replpage
