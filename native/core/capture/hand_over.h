// Sends what a replica needs to run to its keeper.
#pragma once

#include <functional>

#include "core/capture/last_epoch.h"

namespace replpage {

// Descriptors and pages, then the order to promote; `before_order` is called just before that, when
// all else has been sent. Throws KeeperLost, SysError. Tracer thread, with worker_mutex held.
void send_hand_over(GroupContext& context, HandOver last,
                    const std::function<void()>& before_order);

}  // namespace replpage
