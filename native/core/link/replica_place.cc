#include "core/link/replica_place.h"

namespace replpage {

KeeperProcess start_keeper_at(const ReplicaHome& home, const ReplicaOptions& group, pid_t primary,
                              const StagingArea& staging) {
  return home.place ? home.place->start(staging) : spawn_keeper_of(group, primary, staging);
}

}  // namespace replpage
