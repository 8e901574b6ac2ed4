// Finds free places in an address space.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/base/page.h"

namespace replpage {

inline constexpr uint64_t kUserAddressFirst = 0x10000;
inline constexpr uint64_t kUserAddressEnd = 0x7ffffffff000;  // TASK_SIZE_MAX without LA57

class AddressGaps {
 public:
  void occupy(PageRange range) { occupied_.push_back(range); }

  // A free range of `bytes` whose start is `modulo` plus a multiple of `alignment` (a power of
  // two). Prefers the wide empty middle of the address space, away from where heaps and stacks grow
  // and mmap places things. nullopt: there is none.
  [[nodiscard]] std::optional<uint64_t> find(uint64_t bytes, uint64_t alignment = kPageSize,
                                             uint64_t modulo = 0) const;

 private:
  std::vector<PageRange> occupied_;
};

// Ranges of `bytes` bytes from 0 to kUserAddressEnd that are not in `keep`, ascending.
std::vector<PageRange> complement(std::vector<PageRange> keep);

}  // namespace replpage
