// Entries of /proc/PID/pagemap, one 64-bit word a page
// (Documentation/admin-guide/mm/pagemap.rst).
#pragma once

#include <cstdint>
#include <span>

#include "core/memory/page_ranges.h"

namespace replpage {

inline constexpr uint64_t kEntryFrame = (1ull << 55) - 1;  // its page frame, or place in swap
inline constexpr uint64_t kEntrySoftDirty = 1ull << 55;
inline constexpr uint64_t kEntryExclusive = 1ull << 56;  // mapped once, and no zero page
inline constexpr uint64_t kEntryFile = 1ull << 61;       // page of a file, or shared anonymous
inline constexpr uint64_t kEntrySwapped = 1ull << 62;
inline constexpr uint64_t kEntryPresent = 1ull << 63;

// Which entries are wanted: one of `any_of`, all of `required`, none of `excluded`.
struct EntryQuery {
  uint64_t any_of = kEntryPresent | kEntrySwapped, required = 0, excluded = 0;
  [[nodiscard]] bool matches(uint64_t entry) const {
    return (any_of == 0 || (entry & any_of) != 0) && (entry & required) == required &&
           (entry & excluded) == 0;
  }
};

// Appends the pages whose entries match; `start` is the address of the first entry's page.
void append_matching(std::span<const uint64_t> entries, uint64_t start, const EntryQuery& query,
                     PageRanges& ranges);

}  // namespace replpage
