#include "core/restore/address_gaps.h"

#include <algorithm>

namespace replpage {
namespace {

// Distance kept to neighbours where there is room.
constexpr uint64_t kClearance = 1ull << 36;

std::optional<uint64_t> place(PageRange gap, uint64_t bytes, uint64_t alignment, uint64_t modulo) {
  const uint64_t offset = modulo & (alignment - 1);
  uint64_t start = (gap.start & ~(alignment - 1)) + offset;
  if (start < gap.start) start += alignment;
  if (start >= gap.end || gap.end - start < bytes) return std::nullopt;
  return start;
}

}  // namespace

std::vector<PageRange> complement(std::vector<PageRange> keep) {
  std::sort(keep.begin(), keep.end(),
            [](const PageRange& a, const PageRange& b) { return a.start < b.start; });
  std::vector<PageRange> gaps;
  uint64_t at = 0;
  for (const PageRange& range : keep) {
    if (range.start >= kUserAddressEnd) break;
    if (range.start > at) gaps.push_back({at, range.start});
    at = std::max(at, range.end);
  }
  if (at < kUserAddressEnd) gaps.push_back({at, kUserAddressEnd});
  return gaps;
}

std::optional<uint64_t> AddressGaps::find(uint64_t bytes, uint64_t alignment,
                                          uint64_t modulo) const {
  std::vector<PageRange> keep = occupied_;
  keep.push_back({0, kUserAddressFirst});
  std::vector<PageRange> gaps = complement(std::move(keep));
  std::sort(gaps.begin(), gaps.end(),
            [](const PageRange& a, const PageRange& b) { return a.bytes() > b.bytes(); });
  for (const PageRange& gap : gaps) {
    PageRange inner = gap;
    if (gap.bytes() > 4 * kClearance) inner = {gap.start + kClearance, gap.end - kClearance};
    if (auto start = place(inner, bytes, alignment, modulo)) return start;
    if (auto start = place(gap, bytes, alignment, modulo)) return start;
  }
  return std::nullopt;
}

}  // namespace replpage
