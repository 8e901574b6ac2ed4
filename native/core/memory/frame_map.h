// Which page frame each page of a process was in at one look: a page that is in another frame now
// was moved there or replaced, though it may not be soft-dirty.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/memory/pagemap_entries.h"

namespace replpage {

class FrameMap {
 public:
  // Adds the pages whose entries match; `start` is the address of the first entry's page.
  // Ascending.
  void add(std::span<const uint64_t> entries, uint64_t start, const EntryQuery& query);

  // Pages of this look that `before` has not, or has in another frame.
  [[nodiscard]] PageRanges changed_since(const FrameMap& before) const;

  [[nodiscard]] const PageRanges& pages() const { return pages_; }

 private:
  PageRanges pages_;
  std::vector<uint64_t> frames_;  // of each of them
};

}  // namespace replpage
