#include "core/access/table_entries.h"

#include <array>
#include <bit>

namespace replpage {

void append_touched(std::span<const uint64_t> entries, uint64_t base, size_t first, size_t last,
                    uint64_t zero, PageRanges& touched) {
  constexpr size_t kWordBits = 64;
  // A word of 64 pages at a time: most are touched as a whole, or not at all.
  for (size_t at = first; at < last;) {
    const size_t end = std::min(last, (at / kWordBits + 1) * kWordBits);
    uint64_t bits = 0;
    for (size_t i = at; i < end; ++i) {
      const uint64_t entry = entries[i];
      const bool counts = is_touched(entry) && (entry & kTableAddress) != zero;
      bits |= uint64_t{counts} << (i - at);
    }
    while (bits != 0) {
      const auto skip = static_cast<size_t>(std::countr_zero(bits));
      const auto length = static_cast<size_t>(std::countr_one(bits >> skip));
      append_range(touched,
                   {base + (at + skip) * kPageSize, base + (at + skip + length) * kPageSize});
      bits = skip + length >= kWordBits ? 0 : bits >> (skip + length) << (skip + length);
    }
    at = end;
  }
}

}  // namespace replpage
