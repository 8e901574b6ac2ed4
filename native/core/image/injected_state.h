// Asks a process for its hidden state by system calls that its threads execute.
#pragma once

#include <sys/types.h>

#include <optional>

#include "core/image/hidden_state.h"
#include "core/image/process_capture.h"

namespace replpage {

// Four calls in the thread. nullopt: it is gone.
std::optional<HiddenThreadState> inject_thread_state(pid_t host_tid, const Inject& inject);

// PR_GET_MDWE of prctl(2), 0 where the kernel does not know it. nullopt: the process is gone.
std::optional<uint32_t> inject_deny_write_execute(pid_t host_tid, const Inject& inject);

// About 11 calls in the leader, one for each signal in `asked` (bit 0: signal 1), two for each
// timer. `known`: timers as /proc lists them, and the other signals' actions, which stay.
// mlock_future cannot be asked for and stays 0. nullopt: the process is gone.
std::optional<HiddenProcessState> inject_process_state(pid_t host_tid, const Inject& inject,
                                                       HiddenProcessState known, uint64_t asked);

}  // namespace replpage
