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

// The same for a thread at its exit stop that was killed, whose call ended in a way in which it
// ends for the dying only. Its program was not to see that, and would see the truth once more:
// - fork(2) and its kin give EINTR or ENOMEM (dup_mmap of kernel/fork.c), execve(2) any error.
// - What waits killably gives EINTR, and EFAULT where a page was waited for.
// - exit(2) has not ended it yet.
// - pread(2) and pwrite(2) move a part of the bytes (generic_perform_write of mm/filemap.c); done
//   once more they do the same again, and the rest.
// All others have done nothing. All are marked to be restarted. A page fault in user mode that
// was given up leaves a signal, which is taken out of image.pending: the instruction faults again.
void settle_killed_call(ThreadImage& image);

// Whether the thread was in execve(2) and has not returned from it as another program.
bool is_within_execution(const ThreadImage& image);

}  // namespace replpage
