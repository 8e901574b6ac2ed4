// What is looked at about once a second while the primary runs.
#pragma once

#include <cstdint>

#include "core/group/group_context.h"

namespace replpage {

// Worker thread only.
class SlowLook {
 public:
  explicit SlowLook(GroupContext& context) : context_(context) {}

  // Looks when it is time to. Throws RefusedError with what the processes have taken up since and
  // cannot be replicated (a seccomp filter, a namespace ...), at every call until it is gone.
  void look();

  // Memory of the processes, in bytes: all that is theirs alone, and the largest part that one of
  // them shares.
  [[nodiscard]] uint64_t primary_bytes() const { return primary_bytes_; }

 private:
  GroupContext& context_;
  uint64_t due_us_ = 0;
  uint64_t primary_bytes_ = 0;
};

}  // namespace replpage
