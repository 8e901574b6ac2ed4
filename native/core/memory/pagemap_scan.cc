#include "core/memory/pagemap_scan.h"

#include <fcntl.h>

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
  // The process is gone: other kernels find no pages then.
  if (count < 0 && errno == ESRCH) {
    at = end;
    return 0;
  }
  if (count < 0) throw SysError::from_errno("scan pages", at_address(pid_, at));
  if (argument.walk_end <= at) throw SysError("scan pages", EIO, at_address(pid_, at));
  at = argument.walk_end;
  return static_cast<size_t>(count);
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
