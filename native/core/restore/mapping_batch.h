// System calls that carry out one step of a mapping plan.
#pragma once

#include "core/restore/mapping_plan.h"
#include "core/restore/syscall_batch.h"

namespace replpage {

// What a new mapping is made from.
struct MapSource {
  int descriptor = -1;         // of the file or object in the replica, -1 for anonymous memory
  uint64_t scratch = 0;        // free address with room for segment_bytes
  uint64_t segment_bytes = 0;  // size of the SysV segment
};

// kMap.
void add_map(const MappingStep& step, const MapSource& source, SyscallBatch& batch);

// kUnmap, kProtect and kAdvise.
void add_change(const MappingStep& step, SyscallBatch& batch);

}  // namespace replpage
