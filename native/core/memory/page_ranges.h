// Sorted lists of disjoint address ranges, as the trackers produce them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/base/page.h"

namespace replpage {

// Ascending, disjoint, none empty. Neighbours may touch.
using PageRanges = std::vector<PageRange>;

// Appends a range that begins at or after the end of the last one, joining it when they touch.
void append_range(PageRanges& ranges, PageRange next);

// The same pages as ranges in any order, which may overlap.
PageRanges normal_ranges(std::vector<PageRange> ranges);

// What is in `left` and not in `right`.
PageRanges subtract_ranges(std::span<const PageRange> left, std::span<const PageRange> right);

// What is in both.
PageRanges intersect_ranges(std::span<const PageRange> left, std::span<const PageRange> right);

// What is in one of them or in both.
PageRanges unite_ranges(std::span<const PageRange> left, std::span<const PageRange> right);

uint64_t total_bytes(std::span<const PageRange> ranges);

}  // namespace replpage
