// Kernel state that neither /proc nor a ptrace request tells. It is read from the kernel's own
// structures (KernelReader) or asked by injected system calls.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "core/image/process_image.h"

namespace replpage {

struct HiddenThreadState {
  AltStack altstack;
  uint64_t clear_child_tid = 0;
  int32_t parent_death_signal = 0;
  uint32_t securebits = 0;
};

struct HiddenProcessState {
  std::vector<SignalAction> actions;  // 64
  std::array<IntervalTimer, 3> interval_timers{};
  std::vector<PosixTimer> posix_timers;  // ascending by id; from the caller, with values added
  uint64_t brk = 0;
  int32_t dumpable = 1;
  bool child_subreaper = false;
  uint32_t mlock_future = 0;
  uint32_t membarrier = 0;
  uint32_t deny_write_execute = 0;
};

}  // namespace replpage
