#include "core/memory/frame_map.h"

namespace replpage {

void FrameMap::add(std::span<const uint64_t> entries, uint64_t start, const EntryQuery& query) {
  append_matching(entries, start, query, pages_);
  for (const uint64_t entry : entries) {
    if (query.matches(entry)) frames_.push_back(entry & kEntryFrame);
  }
}

PageRanges FrameMap::changed_since(const FrameMap& before) const {
  PageRanges changed;
  size_t range = 0;  // of `before`, and the number of its first page
  size_t first = 0;
  size_t page = 0;
  for (const PageRange& mine : pages_) {
    for (uint64_t at = mine.start; at < mine.end; at += kPageSize, ++page) {
      while (range < before.pages_.size() && before.pages_[range].end <= at) {
        first += before.pages_[range++].pages();
      }
      const bool known = range < before.pages_.size() && before.pages_[range].start <= at;
      const size_t there = known ? first + (at - before.pages_[range].start) / kPageSize : 0;
      if (known && before.frames_[there] == frames_[page]) continue;
      append_range(changed, {at, at + kPageSize});
    }
  }
  return changed;
}

}  // namespace replpage
