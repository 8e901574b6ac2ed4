// System calls in which a thread was stopped, written down so that another kernel can restart them.
#pragma once

#include <sys/types.h>

#include "core/image/thread_image.h"

namespace replpage {

// Results by which the kernel marks a call to be restarted (include/linux/errno.h).
inline constexpr int64_t kRestartSystem = -512;
inline constexpr int64_t kRestartNoInterrupt = -513;
inline constexpr int64_t kRestartNoHandler = -514;
inline constexpr int64_t kRestartBlock = -516;

// Completes image.registers of a thread that was stopped inside a system call:
// - A call that a stop has interrupted before shows as restart_syscall(2), its number forgotten.
// The
//   number is taken from `previous` (null: none) or from the code before the call; where neither
//   tells it the call ends with EINTR.
// - A call that a stop, not a signal, ends with EINTR (epoll_wait(2) and others, signal(7)) is
// marked
//   to be restarted instead; a signal handler that runs first still makes it EINTR.
void settle_interrupted_call(pid_t host_tid, const ThreadImage* previous, ThreadImage& image);

}  // namespace replpage
