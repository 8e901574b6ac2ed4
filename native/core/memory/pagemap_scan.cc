#include "core/memory/pagemap_scan.h"

#include <fcntl.h>

#include <algorithm>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/memory/memory_thread.h"

namespace replpage {
namespace {

struct ScanArgument {  // struct pm_scan_arg
  uint64_t size, flags, start, end, walk_end, regions, regions_length, pages_max, inverted,
      required, any_of, returned;
};

constexpr uint64_t kWriteProtectMatching = 1;  // PM_SCAN_WP_MATCHING
constexpr unsigned long kPagemapScan = _IOWR('f', 16, ScanArgument);

// 384 KiB of regions: enough that a call's fixed cost vanishes, small enough to stay in cache.
constexpr size_t kRegionsPerCall = 16384;

}  // namespace

PagemapScan::PagemapScan(pid_t pid, pid_t tid)
    : pid_(pid),
      fd_(open_path(thread_file(pid, tid, "pagemap"), O_RDONLY)),
      regions_(kRegionsPerCall) {}

// The kernel walks in pieces of 512 regions, and after a walk that came to its end walk_end says
// where the last piece began (do_pagemap_scan in fs/proc/task_mmu.c: "walk_end isn't set when ret
// is zero", but an earlier piece has set it). Going on from there would report that piece again,
// armed meanwhile, and what was written since in the wrong order.
uint64_t PagemapScan::end_of_step(uint64_t walk_end, uint64_t end,
                                  std::span<const PageRegion> found, uint64_t pages_max) const {
  bool stopped = found.size() == regions_.size();
  if (pages_max != 0) {
    uint64_t pages = 0;
    for (const PageRegion& region : found) pages += (region.end - region.start) / kPageSize;
    stopped = stopped || pages >= pages_max;
  }
  return stopped ? std::max(walk_end, found.back().end) : end;
}

size_t PagemapScan::step(uint64_t& at, uint64_t end, const PageQuery& query, uint64_t pages_max) {
  ScanArgument argument{};
  argument.size = sizeof argument;
  argument.flags = query.write_protect ? kWriteProtectMatching : 0;
  argument.start = at;
  argument.end = end;
  argument.regions = reinterpret_cast<uint64_t>(regions_.data());
  argument.regions_length = regions_.size();
  argument.pages_max = pages_max;
  argument.inverted = query.inverted;
  argument.required = query.required;
  argument.any_of = query.any_of;
  argument.returned = query.returned;
  const int count = ::ioctl(fd_.get(), kPagemapScan, &argument);
  // The process is gone (6.12 says so, others find no pages then): who looks probes for that, see
  // TrackedCapture::memory_lost().
  if (count < 0 && errno == ESRCH) {
    at = end;
    return 0;
  }
  if (count < 0) throw SysError::from_errno("scan pages", at_address(pid_, at));
  const std::span<const PageRegion> found(regions_.data(), static_cast<size_t>(count));
  const uint64_t next = end_of_step(argument.walk_end, end, found, pages_max);
  if (next <= at) throw SysError("scan pages", EIO, at_address(pid_, at));
  at = next;
  return found.size();
}

void PagemapScan::collect(PageRange range, const PageQuery& query, std::vector<PageRange>& ranges) {
  scan(range, query, [&ranges](const PageRegion& region) {
    if (!ranges.empty() && ranges.back().end == region.start) {
      ranges.back().end = region.end;
    } else {
      ranges.push_back({region.start, region.end});
    }
  });
}

}  // namespace replpage
