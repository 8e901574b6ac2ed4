// What the holder prepares for the keeper before it clones it.
#pragma once

#include <sys/types.h>

#include "core/base/unique_fd.h"
#include "core/channel/channel.h"

namespace replpage {

// The holder and the keeper share one descriptor table (CLONE_FILES): whatever the keeper opens, a
// userfaultfd read from another one included, stays open when the keeper is killed, until the
// holder has seen everything in the namespace gone. Without that a killed fault server lets the
// kernel answer with zero pages. So each number has one owner: all of these are the keeper's.
struct KeeperSetup {
  ConfigureMessage configuration;
  UniqueFd channel;  // to the tracer
  UniqueFd staging_memory;
  UniqueFd staging_spill;  // invalid: none
  UniqueFd outside_stream;
  UniqueFd primary;      // pidfd whose namespaces are entered; invalid: stay
  UniqueFd control;      // listening
  UniqueFd holder_link;  // SOCK_SEQPACKET to the holder
  UniqueFd holder;       // pidfd of the holder
  int namespaces = 0;    // CLONE_NEW* to enter

  // The other process owns the numbers now.
  void disown() {
    for (UniqueFd* fd : {&channel, &staging_memory, &staging_spill, &outside_stream, &primary,
                         &control, &holder_link, &holder}) {
      (void)fd->release();
    }
  }
};

}  // namespace replpage
