// Shows a replica's memory to the tracer, which takes checkpoints from it.
#pragma once

#include "core/channel/channel.h"
#include "core/restore/replica.h"

namespace replpage {

// In as many messages as it takes. Throws SysError.
void send_view(Channel& channel, const ReplicaView& view);

}  // namespace replpage
