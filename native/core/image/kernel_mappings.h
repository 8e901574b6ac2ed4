// VmFlags of a process's mappings, read from the kernel's own structures: /proc/PID/smaps walks the
// page tables to tell them (18 ms a GiB), these do not (about 0.3 us a mapping).
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/image/kernel_memory.h"
#include "core/memory/map_line.h"

namespace replpage {

class KernelMappings {
 public:
  // Throws SysError(ENOENT) when this kernel keeps its mappings otherwise than we know.
  explicit KernelMappings(const BtfTypes& types);

  // Bits of all mappings of an address space (a struct mm_struct) that nobody changes, ascending.
  // nullopt when what is there is not understood.
  [[nodiscard]] std::optional<std::vector<VmBits>> read(KernelMemory& memory,
                                                        uint64_t address_space) const;

  // Whether the bits of memory of our own, advised in all ways, mean what we think.
  [[nodiscard]] bool understands_own(KernelMemory& memory, uint64_t own_address_space) const;

 private:
  struct Node {
    uint64_t entry = 0;    // pointer and type, as the tree has it
    uint64_t highest = 0;  // address that it covers
  };
  // Where nodes of one type have their parts, in bytes and entries.
  struct Layout {
    uint32_t pivots = 0, slots = 0;
    size_t count = 0;
  };
  bool descend(KernelMemory& memory, std::vector<Node>& level) const;
  bool expand(std::span<const uint8_t> bytes, const Node& node, std::vector<Node>& below) const;
  [[nodiscard]] std::optional<std::vector<VmBits>> read_leaves(
      KernelMemory& memory, std::span<const Node> mappings) const;

  uint32_t root_ = 0, count_ = 0;  // of mm_struct
  uint32_t start_ = 0, end_ = 0, flags_ = 0, mapping_bytes_ = 0;
  Layout range_, allocation_;
};

}  // namespace replpage
