#include "core/memory/pagemap_entries.h"

namespace replpage {

void append_matching(std::span<const uint64_t> entries, uint64_t start, const EntryQuery& query,
                     PageRanges& ranges) {
  for (size_t first = 0; first < entries.size();) {
    if (!query.matches(entries[first])) {
      ++first;
      continue;
    }
    size_t last = first + 1;
    while (last < entries.size() && query.matches(entries[last])) ++last;
    append_range(ranges, {start + first * kPageSize, start + last * kPageSize});
    first = last;
  }
}

}  // namespace replpage
