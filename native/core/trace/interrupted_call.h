// System calls that a stop would break.
#pragma once

#include <sys/syscall.h>
#include <sys/types.h>

#include <array>
#include <cstdint>
#include <optional>

namespace replpage {

// PTRACE_INTERRUPT takes a thread out of a blocking system call. The kernel restarts most of them
// by itself; a few give up with EINTR instead (signal(7), "Interruption of system calls ... by stop
// signals": epoll_wait, semop, sigtimedwait and others), which a program that has no signal
// handlers need not expect, and would get in every epoch. Where such a call waits without a
// timeout, this turns its end into a restart, which the thread cannot tell from never having been
// stopped; if a signal handler runs first it still sees EINTR. A call with a timeout keeps its
// EINTR: how much of the time had passed is not known.
// For a thread at a PTRACE_EVENT_STOP. One ptrace request when there is nothing to do.
void mend_interrupted_call(pid_t tid) noexcept;

// Calls that return -ERESTART_RESTARTBLOCK.
inline constexpr std::array<uint64_t, 4> kCallsWithRestartBlock = {
    SYS_nanosleep, SYS_clock_nanosleep, SYS_poll, SYS_futex};

// The number of the call with a restart block that returns to `return_address`, as the code before
// it tells: a call that was interrupted twice shows as restart_syscall(2), its number forgotten.
// Compilers load the number right before the call: B8 imm32 ... 0F 05. Null: not told.
std::optional<uint64_t> restarted_call_in_code(pid_t tid, uint64_t return_address);

}  // namespace replpage
