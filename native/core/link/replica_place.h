// Where a group's replica is kept.
#pragma once

#include <memory>
#include <string>

#include "core/link/keeper_process.h"
#include "core/link/replica_options.h"
#include "core/staging/staging.h"

namespace replpage {

// On another machine.
class ReplicaPlace {
 public:
  virtual ~ReplicaPlace() = default;

  // Has a keeper started there. What the tracer stages and says from now on reaches it, but for
  // descriptors; `staging` must not change before end(). Throws KeeperLost, SysError.
  virtual KeeperProcess start(const StagingArea& staging) = 0;

  // Nothing of the staging area is read any more. The keeper keeps what it has committed.
  virtual void end() = 0;
};

struct ReplicaHome {
  std::string node;                     // its name; empty: this machine
  std::shared_ptr<ReplicaPlace> place;  // null: this machine
};

// Starts a keeper there. `primary` as in KeeperOptions. Throws KeeperLost, SysError.
KeeperProcess start_keeper_at(const ReplicaHome& home, const ReplicaOptions& group, pid_t primary,
                              const StagingArea& staging);

}  // namespace replpage
