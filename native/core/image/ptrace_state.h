// State that the kernel tells a tracer of a stopped thread (ptrace(2)).
#pragma once

#include <sys/types.h>

#include <optional>
#include <vector>

#include "core/image/thread_image.h"

namespace replpage {

// All functions: false or nullopt when the thread is gone, SysError otherwise. They work at every
// ptrace stop, exit stops included.

// Registers, XSAVE area, signal mask, robust list and rseq. Throws SysError(ENOTSUP) for a thread
// that runs 32-bit code.
bool read_thread_registers(pid_t tid, ThreadImage& image);

enum class SignalQueue : uint8_t { kThread, kProcess };

// Pending signals in order, except SIGKILL, which is no state but an end.
std::optional<std::vector<SignalInfo>> read_pending(pid_t tid, SignalQueue queue);

struct StopCause {
  std::optional<SignalInfo> delivery;  // signal taken off its queue and not delivered yet
  bool group_stop = false;             // the process is stopped by job control
};
std::optional<StopCause> read_stop_cause(pid_t tid);

}  // namespace replpage
