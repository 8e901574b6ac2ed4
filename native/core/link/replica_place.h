// Where a group's replica is kept when that is another machine.
#pragma once

#include "core/link/keeper_process.h"
#include "core/staging/staging.h"

namespace replpage {

class ReplicaPlace {
 public:
  virtual ~ReplicaPlace() = default;

  // Has a keeper started there. What the tracer stages and says from now on reaches it, but for
  // descriptors; `staging` must not change before end(). Throws KeeperLost, SysError.
  virtual KeeperProcess start(const StagingArea& staging) = 0;

  // Nothing of the staging area is read any more. The keeper keeps what it has committed.
  virtual void end() = 0;
};

}  // namespace replpage
