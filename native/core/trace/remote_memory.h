// Small reads and writes of another process's memory.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>

namespace replpage {

// All of it or false (gone, or not mapped so).
bool read_remote(pid_t pid, uint64_t address, void* to, size_t size) noexcept;
bool write_remote(pid_t pid, uint64_t address, const void* from, size_t size) noexcept;

}  // namespace replpage
