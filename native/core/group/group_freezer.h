// Work on a group that stands still.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "core/group/group_context.h"

namespace replpage {

// Tracer thread only.
class GroupFreezer {
 public:
  explicit GroupFreezer(GroupContext& context) : context_(context) {}

  // Stops the group, and attaches to it before where it is only attached for captures. Not done
  // while the primary is dying.
  FreezeResult freeze(uint64_t deadline_us);

  // Thaws it, or lets go of it where it is only attached for captures.
  void let_run();

  // Runs `work` with the group stopped, and lets it run again. Returns why it cannot be done now,
  // or nothing: a thread does not stop, or stands where it can neither be read nor asked. What else
  // `work` throws passes through.
  std::string while_stopped(uint64_t deadline_us, const std::function<void()>& work);

 private:
  GroupContext& context_;
};

}  // namespace replpage
