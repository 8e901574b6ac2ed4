// How a replica's thread takes on the kernel state of its image, when promoted.
//
// Order of a promotion, for each process: descriptors, then add_thread_state in every thread but
// the leader, then in the leader add_process_state, add_thread_state and add_final_state (which may
// be one batch), apply_outer_state, and apply_registers for every thread. Signals stay blocked in
// the stub until apply_registers, except SIGTRAP: a breakpoint with SIGTRAP blocked makes the
// kernel reset its action (force_sig_info_to_task in kernel/signal.c).
#pragma once

#include <sys/types.h>

#include "core/image/process_image.h"
#include "core/restore/syscall_batch.h"

namespace replpage {

// Appends what `thread` of `process` must do to itself: alternate stack, robust list, rseq, tid
// address, name, scheduling, pending signals, and last its credentials, after which it has no more
// rights than the primary's thread. Scheduling operations may fail (a CPU or a real-time budget is
// missing here); everything else must succeed. rseq and the robust list touch the thread's memory,
// which has to be in place or served by then. The caller's own capabilities are taken as those
// that the replica's thread has now.
enum class SetScheduling : uint8_t { kByItself, kLater };
void add_thread_state(const ProcessImage& process, const ThreadImage& thread, SetScheduling when,
                      SyscallBatch& batch);

// The same in three parts. What lasts may be set some time before the thread is let go, and taken
// back: a thread that forks, exits or loses the memory of its rseq area while that is registered is
// killed, or writes where it has nothing to write. The kernel looks into the rseq area, and writes
// there, whenever the thread was preempted: in one that drops its pages to have them served later,
// before they are served, it would wait for itself, or make a page of zeros where one is missing.
// What passes comes last; `current`: credentials that the thread has now, null when they are not
// known.
void add_lasting_state(const ThreadImage& thread, SetScheduling when, SyscallBatch& batch);
void add_rseq(const ThreadImage& thread, SyscallBatch& batch);
void add_removal(const ThreadImage& thread, SyscallBatch& batch);
void add_passing_state(const ProcessImage& process, const ThreadImage& thread,
                       const Credentials* current, SyscallBatch& batch);
[[nodiscard]] bool lasts_alike(const ThreadImage& one, const ThreadImage& other);

// Pending signals that are none of the above: threads of the stub block neither SIGTRAP nor
// SIGSTOP. They are given to a thread when it is let go.
[[nodiscard]] bool is_given_last(const SignalInfo& info);

// SetScheduling::kLater: gives a thread that was hurried its affinity and policy, by the caller's
// right to hurry it. A policy that is not to be had here (a deadline's budget) is the ordinary one
// instead.
void apply_scheduling(pid_t tid, const Scheduling& scheduling);

// Sets general registers, the XSAVE area and the signal mask of a thread that the caller traces and
// that is in a signal-delivery-stop (the stub's breakpoint), so that an interrupted system call is
// restarted by the kernel when it resumes. `tid` as the caller sees it. Throws SysError.
void apply_registers(pid_t tid, const ThreadImage& thread);

}  // namespace replpage
