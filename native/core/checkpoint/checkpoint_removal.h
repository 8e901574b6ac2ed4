// Removes checkpoints, by a pager of its own.
#pragma once

#include "core/channel/pager_messages.h"
#include "core/checkpoint/checkpoint_reader.h"

namespace replpage {

// `place.id` empty: all of that name. The key is not needed. PagerDoneMessage has the ids and the
// bytes that were freed. Throws StoreError (EBUSY: one is in use), SysError.
PagerDoneMessage remove_checkpoints(const CheckpointPlace& place);

}  // namespace replpage
