// Starts the keeper of a group, from inside a multi-threaded process.
//
// The executable is started with only the descriptors it needs, becomes a daemon of its own (the
// holder: own session, own cgroup, child of init) and clones the keeper into new PID and mount
// namespaces. Neither is our child, and both outlive us.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "core/base/clock_offsets.h"
#include "core/base/unique_fd.h"
#include "core/channel/channel.h"
#include "core/link/replica_options.h"
#include "core/staging/staging.h"

namespace replpage {

struct KeeperOptions {
  std::string executable;  // path of replpage-keeper
  std::string name;        // of the group
  uint64_t generation = 0;
  pid_t primary = 0;                 // host pid of the root, whose namespaces are entered; 0: ours
  std::string control_socket;        // made by the holder in our mount namespace, mode 0600
  int stdio = -1;                    // borrowed; where streams leading outside go, -1: /dev/null
  std::string stdio_path;            // for messages only
  PrimaryClocks clocks = {};         // `inside` is found out where `primary` is known
  std::string service_address = {};  // comes here when the replica is promoted
  bool drill = false;                // see ReplicaOptions
};

struct KeeperProcess {
  Channel channel;
  pid_t holder = 0, keeper = 0;    // as we see them
  UniqueFd pidfd;                  // of the keeper: readable when it has ended
  std::vector<std::string> notes;  // what could not be had (a cgroup hierarchy) and why
};

// Returns when the keeper answered kReady: the next message is kBuild. Throws SysError (no
// executable, no answer within 10 s) and KeeperLost with the holder's or keeper's own reason.
// Whatever was started ends by itself when this throws.
KeeperProcess spawn_keeper(const KeeperOptions& options, const StagingArea& staging);

// The same for a group, whose owner's rights open its output. `primary` as in KeeperOptions.
KeeperProcess spawn_keeper_of(const ReplicaOptions& group, pid_t primary,
                              const StagingArea& staging);

}  // namespace replpage
