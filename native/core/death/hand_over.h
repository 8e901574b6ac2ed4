// Sends what a replica needs to run to its keeper.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "core/base/unique_fd.h"
#include "core/death/moving_connections.h"
#include "core/group/group_context.h"

namespace replpage {

// What the replica is to run from. Its pages are the runs of the context.
struct HandOver {
  GroupImage image;
  std::vector<UniqueFd> open_files;  // by position in the image; invalid: opened anew
  std::vector<LazyRange> lazy;       // read from the old process while the replica runs
  bool exact = false;                // nothing is lost
  std::unique_ptr<MovingConnections> moving = {};  // null: no connection goes along
};

// All on the tracer thread, with worker_mutex held; they throw KeeperLost and SysError.

// Open files by position in the image of `epoch`; what is not valid is left out.
void send_open_files(GroupContext& context, uint64_t epoch,
                     const std::vector<UniqueFd>& open_files);

// The state that the order will name, ahead of it: the keeper reads it while pages are looked for.
void send_last_state(GroupContext& context, GroupImage& image);

// Pages and the order to promote; `before_order` is called just before that, when all else has been
// sent.
void send_order(GroupContext& context, const HandOver& last,
                const std::function<void()>& before_order);

}  // namespace replpage
