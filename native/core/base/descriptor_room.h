// Room in our own descriptor table.
#pragma once

#include <cstddef>

namespace replpage {

// Makes the table of this process as large as `descriptors` more than now will need it, so that no
// later open() has to. In a process with threads the kernel waits for all CPUs to let go of the
// smaller table (5-20 ms, expand_fdtable in fs/file.c). Does what it can within the limit.
void make_descriptor_room(size_t descriptors);

}  // namespace replpage
