#include "core/memory/page_ranges.h"

#include <algorithm>

namespace replpage {

void append_range(PageRanges& ranges, PageRange next) {
  if (next.start >= next.end) return;
  if (!ranges.empty() && ranges.back().end >= next.start) {
    ranges.back().end = std::max(ranges.back().end, next.end);
  } else {
    ranges.push_back(next);
  }
}

PageRanges normal_ranges(std::vector<PageRange> ranges) {
  std::sort(ranges.begin(), ranges.end(),
            [](const PageRange& a, const PageRange& b) { return a.start < b.start; });
  PageRanges result;
  for (const PageRange& range : ranges) append_range(result, range);
  return result;
}

PageRanges subtract_ranges(std::span<const PageRange> left, std::span<const PageRange> right) {
  PageRanges result;
  size_t r = 0;
  for (PageRange rest : left) {
    while (r < right.size() && right[r].end <= rest.start) ++r;
    for (size_t i = r; i < right.size() && right[i].start < rest.end; ++i) {
      append_range(result, {rest.start, std::min(rest.end, right[i].start)});
      rest.start = std::max(rest.start, right[i].end);
      if (rest.start >= rest.end) break;
    }
    append_range(result, rest);
  }
  return result;
}

PageRanges intersect_ranges(std::span<const PageRange> left, std::span<const PageRange> right) {
  PageRanges result;
  for (size_t l = 0, r = 0; l < left.size() && r < right.size();) {
    append_range(result,
                 {std::max(left[l].start, right[r].start), std::min(left[l].end, right[r].end)});
    if (left[l].end < right[r].end) {
      ++l;
    } else {
      ++r;
    }
  }
  return result;
}

PageRanges unite_ranges(std::span<const PageRange> left, std::span<const PageRange> right) {
  PageRanges result;
  result.reserve(left.size() + right.size());
  for (size_t l = 0, r = 0; l < left.size() || r < right.size();) {
    const bool take_left =
        r == right.size() || (l < left.size() && left[l].start <= right[r].start);
    append_range(result, take_left ? left[l++] : right[r++]);
  }
  return result;
}

uint64_t total_bytes(std::span<const PageRange> ranges) {
  uint64_t bytes = 0;
  for (const PageRange& range : ranges) bytes += range.bytes();
  return bytes;
}

}  // namespace replpage
