#include "core/memory/memory_capture.h"

#include "core/base/sys_error.h"
#include "core/memory/memory_thread.h"
#include "core/memory/soft_dirty_tracker.h"
#include "core/memory/tracked_capture.h"
#include "core/memory/uffd_wp_tracker.h"

namespace replpage {
namespace {

using Injector = MemoryCapture::Injector;

std::unique_ptr<DirtyTracker> create_soft_dirty(pid_t host_pid, pid_t tid) {
  if (!SoftDirtyTracker::supported()) {
    throw SysError("track memory by soft-dirty bits", EOPNOTSUPP, on_pid(host_pid));
  }
  return std::make_unique<SoftDirtyTracker>(host_pid, tid);
}

std::unique_ptr<DirtyTracker> create_uffd_wp(pid_t host_pid, pid_t tid, const Injector& injector) {
  if (!WriteProtectUffd::supported()) {
    throw SysError("track memory by write-protection", EOPNOTSUPP, on_pid(host_pid));
  }
  return std::make_unique<UffdWpTracker>(host_pid, tid, injector);
}

std::unique_ptr<DirtyTracker> create_best(pid_t host_pid, pid_t tid, const Injector& injector) {
  if (!WriteProtectUffd::supported()) return create_soft_dirty(host_pid, tid);
  try {
    return create_uffd_wp(host_pid, tid, injector);
  } catch (const SysError& error) {
    if (error.error() != EBUSY || !SoftDirtyTracker::supported()) throw;
    return create_soft_dirty(host_pid, tid);
  }
}

pid_t thread_with_memory(pid_t host_pid) {
  const auto tid = memory_thread(host_pid);
  if (!tid) throw SysError("track the memory", ESRCH, on_pid(host_pid));
  return *tid;
}

}  // namespace

std::unique_ptr<MemoryCapture> MemoryCapture::create(pid_t host_pid, int32_t group_pid,
                                                     std::optional<TrackerKind> wanted,
                                                     const Injector& injector) {
  const pid_t tid = thread_with_memory(host_pid);
  std::unique_ptr<DirtyTracker> tracker;
  if (!wanted) {
    tracker = create_best(host_pid, tid, injector);
  } else if (*wanted == TrackerKind::kUffdWp) {
    tracker = create_uffd_wp(host_pid, tid, injector);
  } else {
    tracker = create_soft_dirty(host_pid, tid);
  }
  return std::make_unique<TrackedCapture>(host_pid, tid, group_pid, std::move(tracker));
}

std::unique_ptr<MemoryCapture> MemoryCapture::create_for_last_copy(pid_t host_pid,
                                                                   int32_t group_pid) {
  const pid_t tid = thread_with_memory(host_pid);
  std::unique_ptr<DirtyTracker> tracker;
  if (WriteProtectUffd::supported()) {
    tracker = std::make_unique<UffdWpTracker>(host_pid, tid);
  } else {
    tracker = std::make_unique<SoftDirtyTracker>(host_pid, tid);
  }
  return std::make_unique<TrackedCapture>(host_pid, tid, group_pid, std::move(tracker));
}

}  // namespace replpage
