// Gives the processes of a replica their descriptors: the very open files of the dying process, or
// new ones like them.
#pragma once

#include <fcntl.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/restore/replica.h"

namespace replpage {

// A POSIX lock that the replica must have but somebody still holds: as a rule the dying process,
// which releases it only after its memory is torn down. A task sharing the process's descriptors
// (CLONE_FILES) that waits in F_SETLKW gets it ahead of later competitors.
struct QueuedLock {
  int32_t pid = 0;  // group pid
  int32_t fd = -1;
  FileLock lock;
};

// For F_SETLK and F_SETLKW.
struct flock lock_range(const FileLock& lock);

// As restore_descriptors() of replica.h, but tells which locks are still to be had.
std::vector<QueuedLock> install_descriptors(const PromoteInput& input,
                                            std::span<ReplicaProcess* const> processes);

// How many descriptors a process with the table may have at once while its descriptors are
// installed: its own numbers, and the files to be named above them.
size_t descriptor_room(const GroupImage& image, uint32_t table);

// Makes sure that we, and a process of the replica, can have so many descriptors. Throws SysError
// (EPERM) where neither our own hard limit nor our rights suffice.
void need_descriptor_limit(size_t numbers);

// Throws FormatError when the image names open files, tables or lengths that it does not have.
void check_descriptor_image(const GroupImage& image);

}  // namespace replpage
