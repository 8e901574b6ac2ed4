#include "core/access/table_entries.h"

#include <algorithm>
#include <bit>

namespace replpage {
namespace {

constexpr size_t kWordBits = 64;
constexpr uint64_t kAllBits = ~uint64_t{0};

uint64_t bits_of(std::span<const uint64_t> entries, uint64_t zero) {
  uint64_t bits = 0;
  for (size_t i = 0; i < entries.size(); ++i) {
    const bool counts = is_touched(entries[i]) && (entries[i] & kTableAddress) != zero;
    bits |= uint64_t{counts} << i;
  }
  return bits;
}

// The same for 64 entries, which mostly are all touched or none of them.
uint64_t bits_of_word(const uint64_t* entries, uint64_t zero) {
  uint64_t any = 0, all = kAllBits;
  for (size_t i = 0; i < kWordBits; ++i) {
    any |= entries[i];
    all &= entries[i];
  }
  if ((any & kTableAccessed) == 0) return 0;
  constexpr uint64_t kTouched = kTablePresent | kTableAccessed;
  if ((all & kTouched) == kTouched && (any & kTableSpecial) == 0) return kAllBits;
  return bits_of({entries, kWordBits}, zero);
}

}  // namespace

void append_touched(std::span<const uint64_t> entries, uint64_t base, size_t first, size_t last,
                    uint64_t zero, PageRanges& touched) {
  for (size_t at = first; at < last;) {
    const size_t end = std::min(last, (at / kWordBits + 1) * kWordBits);
    uint64_t bits = end - at == kWordBits ? bits_of_word(&entries[at], zero)
                                          : bits_of(entries.subspan(at, end - at), zero);
    const uint64_t word_base = base + at * kPageSize;
    while (bits != 0) {
      const auto from = static_cast<uint64_t>(std::countr_zero(bits));
      const auto to = from + static_cast<uint64_t>(std::countr_one(bits >> from));
      append_range(touched, {word_base + from * kPageSize, word_base + to * kPageSize});
      bits = to == kWordBits ? 0 : bits >> to << to;
    }
    at = end;
  }
}

}  // namespace replpage
