// The kernel's struct sched_attr (sched_setattr(2)): its own header collides with glibc's sched.h.
#pragma once

#include <cstdint>

namespace replpage {

struct SchedulingAttributes {
  uint32_t size = 48;  // SCHED_ATTR_SIZE_VER0
  uint32_t policy = 0;
  uint64_t flags = 0;
  int32_t nice = 0;
  uint32_t priority = 0;
  uint64_t runtime_ns = 0, deadline_ns = 0, period_ns = 0;
};
static_assert(sizeof(SchedulingAttributes) == 48);

}  // namespace replpage
