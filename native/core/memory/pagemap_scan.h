// The PAGEMAP_SCAN ioctl of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst, since
// Linux 6.7). Defined here because the headers of Debian 12 do not have it.
#pragma once

#include <sys/ioctl.h>
#include <sys/types.h>

#include <cstdint>
#include <span>
#include <vector>

#include "core/base/page.h"
#include "core/base/unique_fd.h"

namespace replpage {

// Page categories, bits of the PAGE_IS_* family of include/uapi/linux/fs.h.
enum PageCategory : uint64_t {
  kPageTracked = 1u << 0,  // WPALLOWED: the mapping is registered for asynchronous write-protect
  kPageWritten = 1u << 1,
  kPageFile = 1u << 2,  // not anonymous: belongs to the page cache
  kPagePresent = 1u << 3,
  kPageSwapped = 1u << 4,  // swap entries, but marker and migration entries as well
  kPageZero = 1u << 5,     // the kernel's shared zero page
};

struct PageRegion {  // struct page_region
  uint64_t start = 0, end = 0, categories = 0;
};

// What to look for. A page matches when all of `required` and one of `any_of` (when not 0) hold;
// categories in `inverted` count when they are absent.
struct PageQuery {
  uint64_t inverted = 0, required = 0, any_of = 0;
  uint64_t returned = 0;       // categories that the regions carry
  bool write_protect = false;  // matching pages are armed again in the same step
};

class PagemapScan {
 public:
  // Opens the pagemap of a process, by a thread that shows it (memory_thread.h); bound to the
  // address space the process has now, not to a later one. Throws SysError.
  PagemapScan(pid_t pid, pid_t tid);

  // Matching regions of the range, ascending, handed to `visit` in batches that are valid during
  // the call only. Mappings that are not tracked are skipped silently when write_protect is set.
  // Throws SysError. `pages_max` 0: no limit; else stops once so many pages matched.
  template <class Visit>
  void scan(PageRange range, const PageQuery& query, Visit&& visit, uint64_t pages_max = 0) {
    uint64_t found = 0;
    for (uint64_t at = range.start; at < range.end;) {
      const size_t count = step(at, range.end, query, pages_max == 0 ? 0 : pages_max - found);
      for (size_t i = 0; i < count; ++i) {
        found += (regions_[i].end - regions_[i].start) / kPageSize;
        visit(regions_[i]);
      }
      if (pages_max != 0 && found >= pages_max) return;
    }
  }

  // Appends the ranges that match, joining neighbours.
  void collect(PageRange range, const PageQuery& query, std::vector<PageRange>& ranges);

  [[nodiscard]] int pagemap() const { return fd_.get(); }

 private:
  // Where the next step begins.
  [[nodiscard]] uint64_t end_of_step(uint64_t walk_end, uint64_t end,
                                     std::span<const PageRegion> found, uint64_t pages_max) const;
  // One call of the ioctl; moves `at` to where it ended.
  size_t step(uint64_t& at, uint64_t end, const PageQuery& query, uint64_t pages_max);

  pid_t pid_;
  UniqueFd fd_;
  std::vector<PageRegion> regions_;
};

}  // namespace replpage
