#include "core/memory/last_copy_plan.h"

#include <algorithm>
#include <vector>

#include "core/memory/dirty_tracker.h"

namespace replpage {
namespace {

struct Part {
  PageRange range;
  uint64_t dirty_pages = 0;
  size_t mapping = 0;
};

// What userfaultfd can serve. A growing stack is small and the first thing that runs.
bool may_be_lazy(const MappingImage& mapping) {
  return mapping.kind == MappingKind::kAnonymous && (mapping.flags & kGrowsDown) == 0;
}

// Parts that may be lazy with dirty pages in them, ascending.
std::vector<Part> parts_of(std::span<const MappingImage> mappings,
                           std::span<const PageRange> dirty) {
  std::vector<Part> parts;
  size_t m = 0;
  for (const PageRange& range : dirty) {
    for (uint64_t at = range.start; at < range.end;) {
      while (m < mappings.size() && mappings[m].end <= at) ++m;
      if (m == mappings.size()) return parts;
      const MappingImage& mapping = mappings[m];
      const uint64_t start = std::max(mapping.start, at & ~(kLazyPartBytes - 1));
      const uint64_t end = std::min(mapping.end, (at & ~(kLazyPartBytes - 1)) + kLazyPartBytes);
      const uint64_t stop = std::min(end, range.end);
      if (may_be_lazy(mapping)) {
        if (parts.empty() || parts.back().range.start != start) {
          parts.push_back({.range = {start, end}, .dirty_pages = 0, .mapping = m});
        }
        parts.back().dirty_pages += (stop - at) / kPageSize;
      }
      at = stop;
    }
  }
  return parts;
}

uint64_t pages_never_lazy(std::span<const MappingImage> mappings,
                          std::span<const PageRange> dirty) {
  PageRanges ranges;
  for (const MappingImage& mapping : mappings) {
    if (!may_be_lazy(mapping)) append_range(ranges, mapping.range());
  }
  return total_bytes(intersect_ranges(ranges, dirty)) / kPageSize;
}

// The number of dirty pages per part up to which parts are copied within the budget.
uint64_t density_limit(std::vector<Part> parts, uint64_t pages_max) {
  std::sort(parts.begin(), parts.end(),
            [](const Part& a, const Part& b) { return a.dirty_pages < b.dirty_pages; });
  uint64_t pages = 0;
  uint64_t limit = 0;
  for (size_t first = 0; first < parts.size();) {
    size_t last = first;
    while (last < parts.size() && parts[last].dirty_pages == parts[first].dirty_pages) ++last;
    pages += (last - first) * parts[first].dirty_pages;
    if (pages > pages_max) return limit;
    limit = parts[first].dirty_pages;
    first = last;
  }
  return UINT64_MAX;
}

// Joins the ranges over their smallest gaps until few enough are left.
void bound_count(PageRanges& ranges, size_t count_max) {
  if (ranges.size() <= count_max) return;
  std::vector<uint64_t> gaps;
  for (size_t i = 1; i < ranges.size(); ++i) gaps.push_back(ranges[i].start - ranges[i - 1].end);
  const auto nth = gaps.begin() + static_cast<ptrdiff_t>(ranges.size() - count_max - 1);
  std::nth_element(gaps.begin(), nth, gaps.end());
  const uint64_t joined_gap = *nth;
  PageRanges fewer;
  for (const PageRange& range : ranges) {
    if (!fewer.empty() && range.start - fewer.back().end <= joined_gap) {
      fewer.back().end = range.end;
    } else {
      fewer.push_back(range);
    }
  }
  ranges = std::move(fewer);
}

}  // namespace

LastCopyPlan plan_last_copy(std::span<const MappingImage> mappings,
                            std::span<const PageRange> dirty, uint64_t copy_pages_max) {
  LastCopyPlan plan;
  const uint64_t always = pages_never_lazy(mappings, dirty);
  const uint64_t budget = copy_pages_max > always ? copy_pages_max - always : 0;
  const std::vector<Part> parts = parts_of(mappings, dirty);
  const uint64_t limit = density_limit(parts, budget);
  for (size_t first = 0; first < parts.size();) {
    size_t last = first;
    PageRanges ranges;
    for (; last < parts.size() && parts[last].mapping == parts[first].mapping; ++last) {
      if (parts[last].dirty_pages > limit) append_range(ranges, parts[last].range);
    }
    bound_count(ranges, kLazyRangesPerMapping);
    plan.lazy.insert(plan.lazy.end(), ranges.begin(), ranges.end());
    first = last;
  }
  plan.copied = subtract_ranges(dirty, plan.lazy);
  return plan;
}

}  // namespace replpage
