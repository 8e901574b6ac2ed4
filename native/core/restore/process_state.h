// How a replica's process takes on the kernel state of its image that all its threads share. See
// thread_state.h for the order.
#pragma once

#include <sys/types.h>

#include <string_view>

#include "core/image/process_image.h"
#include "core/restore/syscall_batch.h"

namespace replpage {

// Run by the leader as soon as it exists, before its other threads and its children are created:
// session, process group leadership, transparent huge pages, membarrier registrations (which cost
// milliseconds once there are threads).
void add_build_state(const ProcessImage& process, SyscallBatch& batch);

// Run by the leader at promotion, with memory and descriptors in place and all rights still there:
// process group, executable, layout, personality, signal actions, umask, directories, timers,
// pending signals, resource limits. Throws SysError(ENOTSUP) when the kernel cannot restore a
// timer's number.
// `directory`: number of a descriptor of the working directory in the process when that has been
// removed; it is closed. Else below 0.
void add_process_state(const ProcessImage& process, int directory, SyscallBatch& batch);

// The same in two parts: what lasts may be set some time before the process is let go. `current`:
// limits that the process has now, empty when they are not known.
void add_lasting_state(const ProcessImage& process, SyscallBatch& batch);
void add_passing_state(const ProcessImage& process, int directory,
                       const std::vector<ResourceLimit>& current, SyscallBatch& batch);
[[nodiscard]] bool lasts_alike(const ProcessImage& one, const ProcessImage& other);

// Resource limits of a process in number order; empty when they are not to be had.
std::vector<ResourceLimit> limits_of(pid_t pid);

// How long ago the image was taken; 0 where it was taken before a restart of the machine.
uint64_t time_since_capture_ns(const ProcessImage& process);

// Whether a path of /proc/PID/cwd says that the directory has been removed.
bool is_removed(std::string_view path);

// Run by the leader after every thread has run add_thread_state: what a change of credentials
// resets, and what would forbid the steps before it.
void add_final_state(const ProcessImage& process, SyscallBatch& batch);

// To be called by the keeper before it builds the process: throws SysError(EPERM) when a resource
// limit of the image is higher than the keeper's own and it may not raise it.
void check_process_rights(const ProcessImage& process);

// Sets what only files of /proc set, oom_score_adj and coredump_filter, of process `pid` (as the
// caller and its /proc see it). Throws SysError.
void apply_outer_state(pid_t pid, const ProcessImage& process);

}  // namespace replpage
