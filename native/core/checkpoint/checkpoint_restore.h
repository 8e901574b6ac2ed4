// Brings a checkpoint back: a keeper builds the replica and promotes it at once; what need not be
// there comes from the store when it is touched.
#pragma once

#include <stop_token>

#include "core/checkpoint/checkpoint_reader.h"
#include "core/group/group_types.h"

namespace replpage {

// Of the group that it becomes.
struct RestoreOptions : ReplicaOptions {
  CheckpointPlace place;
};

// Returns when it runs. Throws StoreError, SysError, KeeperLost with the keeper's reason,
// FormatError; nothing runs then. `stop`: nobody wants it any more; it throws soon, and what was
// let go already runs on.
PromotionReport restore_checkpoint(const RestoreOptions& options, const std::stop_token& stop = {});

}  // namespace replpage
