// Entries of x86-64 page tables (Intel SDM volume 3, 4.5), as Linux uses them. Pure.
#pragma once

#include <cstdint>
#include <span>

#include "core/memory/page_ranges.h"

namespace replpage {

inline constexpr uint64_t kEntriesPerTable = 512;
inline constexpr uint64_t kHugeBytes = kEntriesPerTable * kPageSize;  // one entry of level 2

inline constexpr uint64_t kTablePresent = 1u << 0;
inline constexpr uint64_t kTableAccessed = 1u << 5;
inline constexpr uint64_t kTableHuge = 1u << 7;  // of level 2 and 3: no table below, a page
// Linux: mapped, but for nobody to touch (PROT_NONE, NUMA hinting). In swap entries it is clear.
inline constexpr uint64_t kTableNoAccess = 1u << 8;
inline constexpr uint64_t kTableSpecial = 1u << 9;  // Linux: no page of its own, as the zero page
inline constexpr uint64_t kTableAddress = 0x000F'FFFF'FFFF'F000;

// Bytes that one entry of a level maps; level 1 has pages.
constexpr uint64_t entry_bytes(int level) { return kPageSize << (9 * (level - 1)); }
constexpr uint64_t table_bytes(int level) { return entry_bytes(level) * kEntriesPerTable; }

// Whether the page was touched since its bit was cleared. Swap entries were not: bit 5 is part of
// their offset.
constexpr bool is_touched(uint64_t entry) {
  return (entry & (kTablePresent | kTableNoAccess)) != 0 && (entry & kTableAccessed) != 0;
}

// Whether an entry of level 2 is a huge page.
constexpr bool is_huge(uint64_t entry) {
  return (entry & (kTablePresent | kTableNoAccess)) != 0 && (entry & kTableHuge) != 0;
}

// Appends what the table's entries [first, last) say was touched, but not pages that show the frame
// at physical address `zero` (the kernel's zero page; 1: none). `base` is what entry 0 maps.
void append_touched(std::span<const uint64_t> entries, uint64_t base, size_t first, size_t last,
                    uint64_t zero, PageRanges& touched);

}  // namespace replpage
