// Decides which dirty pages of a dying process are copied and which parts of its memory are left to
// be served from it.
#pragma once

#include <cstdint>
#include <span>

#include "core/image/mapping_image.h"
#include "core/memory/page_ranges.h"

namespace replpage {

// Lazy ranges are whole parts of this size (or what a mapping has of one): large enough for huge
// pages and for few ranges, small enough that one hot structure does not drag its surroundings in.
inline constexpr uint64_t kLazyPartBytes = 2u << 20;

// Most lazy ranges of one mapping. Each costs the replica a mremap and a registration.
inline constexpr size_t kLazyRangesPerMapping = 16;

struct LastCopyPlan {
  PageRanges copied;
  PageRanges lazy;
};

// `dirty` ascends. Pages of stacks and of file-backed mappings are always copied; of the rest those
// in the parts with the fewest dirty pages, until `copy_pages_max` pages in all are reached.
LastCopyPlan plan_last_copy(std::span<const MappingImage> mappings,
                            std::span<const PageRange> dirty, uint64_t copy_pages_max);

}  // namespace replpage
