// Reads the memory map of a process.
#pragma once

#include <sys/types.h>

#include <optional>
#include <span>
#include <vector>

#include "core/image/mapping_image.h"
#include "core/image/refusal.h"
#include "core/memory/map_line.h"

namespace replpage {

// From /proc/PID/maps (about 0.25 us a line). VmFlags (madvise, mlock, grows-down), protection keys
// and anonymous names are costly, since /proc/PID/smaps walks the page tables (18 ms a GiB): they
// are taken from `known` for mappings of the same range, and read anew when `with_flags`.
// Refuses (appends to `refusals` when not null) device mappings, hugetlb, special kernel mappings.
// nullopt: the process is gone. Throws SysError.
std::optional<std::vector<MappingImage>> read_memory_map(pid_t pid,
                                                         const std::vector<MappingImage>& known,
                                                         bool with_flags, Refusals* refusals);

// The same with all flags, which the kernel's bits of every line tell, ascending. nullopt also when
// the bits are those of other mappings. For a process that is stopped. With `look_at_files`, files
// are looked at as smaps makes one do it: a device has other names than those in /dev.
std::optional<std::vector<MappingImage>> read_memory_map(pid_t pid, std::span<const VmBits> bits,
                                                         bool look_at_files);

}  // namespace replpage
