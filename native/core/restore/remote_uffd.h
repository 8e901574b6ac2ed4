// A userfaultfd of another process, made by a batch that the process executes, and driven from
// here.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/base/unique_fd.h"
#include "core/restore/replica.h"

namespace replpage {

// Appends its making, with the features of UFFDIO_API; returns which result is the descriptor.
size_t add_uffd(uint64_t features, SyscallBatch& batch);

// Takes descriptor `remote` out of the process, and closes it there. Throws SysError.
UniqueFd take_uffd(ReplicaProcess& process, int remote);

}  // namespace replpage
