#include "core/memory/memory_capture.h"

#include "core/base/sys_error.h"
#include "core/memory/memory_thread.h"
#include "core/memory/tracked_capture.h"
#include "core/memory/uffd_wp_tracker.h"

namespace replpage {

std::unique_ptr<MemoryCapture> MemoryCapture::create(pid_t host_pid, int32_t group_pid,
                                                     std::optional<TrackerKind> wanted,
                                                     const Injector& injector) {
  const auto tid = memory_thread(host_pid);
  if (!tid) throw SysError("track the memory", ESRCH, on_pid(host_pid));
  std::unique_ptr<DirtyTracker> tracker;
  const bool uffd_works = UffdWpTracker::supported();
  if (wanted == TrackerKind::kUffdWp || (!wanted && uffd_works)) {
    if (!uffd_works) throw SysError("track memory by write-protection", EOPNOTSUPP);
    tracker = std::make_unique<UffdWpTracker>(host_pid, *tid, injector);
  } else {
    throw SysError("track memory by soft-dirty bits", EOPNOTSUPP);
  }
  return std::make_unique<TrackedCapture>(host_pid, *tid, group_pid, std::move(tracker));
}

}  // namespace replpage
