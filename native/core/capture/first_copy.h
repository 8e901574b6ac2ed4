// The way to the first epoch: check, track, and copy everything once while the primary runs.
#pragma once

#include <cstdint>

#include "core/group/group_context.h"
#include "core/group/group_freezer.h"
#include "core/link/keeper_process.h"

namespace replpage {

// A pre-copy stops when a freeze would copy no more than this many pages (about 1 ms), when it does
// not get smaller any more, or after the last round.
inline constexpr uint64_t kFrozenPagesWanted = 512;
inline constexpr uint32_t kPrecopyRoundsMax = 4;

class FirstCopy {
 public:
  FirstCopy(GroupContext& context, GroupFreezer& freezer) : context_(context), freezer_(freezer) {}

  // Tracer thread: attaches, looks for what cannot be replicated, tracks all memory. Throws
  // RefusedError, SysError, KeeperLost (the process does not stop).
  GroupImage freeze();

  // Worker thread. Throws SysError, KeeperLost.
  std::vector<std::string> start_replicas();

  // Worker thread: has the replica built and copies everything into it, in rounds, with `image`
  // brought up to date by each. Returns how many bytes it sent. Throws KeeperLost,
  // CaptureCancelled, SysError.
  uint64_t copy(GroupImage& image);

 private:
  void build_replica(GroupImage& image);
  uint64_t copy_round(const GroupImage& image, uint64_t copied, uint64_t total);

  GroupContext& context_;
  GroupFreezer& freezer_;
};

}  // namespace replpage
