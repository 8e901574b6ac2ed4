// Descriptors of crashed processes whose main thread has ended before the others.
#pragma once

#include <vector>

#include "core/group/group_context.h"

namespace replpage {

// Such a process shows nothing of its descriptors any more but through its other threads. Takes
// from there what the replica cannot open anew beside it: the unconnected sockets of the last
// epoch, whose addresses are in use, to their positions in `matched`. None on kernels before 6.9
// (PIDFD_THREAD of pidfd_open(2)).
void take_leaderless_sockets(const GroupContext& context, std::vector<UniqueFd>& matched);

}  // namespace replpage
