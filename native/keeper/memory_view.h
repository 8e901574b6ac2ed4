// Shows a replica's memory to the tracer, which checks it against the primary's.
#pragma once

#include "core/channel/channel.h"
#include "core/restore/replica.h"

namespace replpage {

// In as many messages as it takes. Throws SysError.
void send_view(Channel& channel, const ReplicaView& view);

}  // namespace replpage
