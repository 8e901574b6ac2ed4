// Page arithmetic. replpage handles 4 KiB base pages; huge pages are seen through them.
#pragma once

#include <cstdint>

namespace replpage {

inline constexpr uint64_t kPageSize = 4096;

constexpr uint64_t page_floor(uint64_t address) { return address & ~(kPageSize - 1); }
constexpr uint64_t page_ceil(uint64_t address) { return page_floor(address + kPageSize - 1); }

// Half-open address range [start, end), page aligned.
struct PageRange {
  uint64_t start = 0;
  uint64_t end = 0;
  [[nodiscard]] uint64_t bytes() const { return end - start; }
  [[nodiscard]] uint64_t pages() const { return bytes() / kPageSize; }
  [[nodiscard]] bool contains(uint64_t a) const { return a >= start && a < end; }
  bool operator==(const PageRange&) const = default;
};

}  // namespace replpage
