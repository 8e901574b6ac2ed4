// The holder: daemon of its own outside the replica's namespaces, parent of the keeper.
#pragma once

namespace replpage {

// Runs with the channel to the tracer; returns the exit code.
int run_holder(int channel_fd);

}  // namespace replpage
