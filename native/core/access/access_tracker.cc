#include "core/access/access_tracker.h"

#include <algorithm>

#include "core/access/idle_bitmap_tracker.h"
#include "core/access/page_walk_tracker.h"
#include "core/base/sys_error.h"

namespace replpage {
namespace {

// The caller of sample() knows what was written; here nothing is to be found.
class WriteRecency : public AccessTracker {
 public:
  [[nodiscard]] AccessTrackerKind kind() const override { return AccessTrackerKind::kWriteRecency; }
  AccessSample sample(std::span<const MappingImage>, const Visit&) override { return {}; }
};

}  // namespace

const char* name_of(AccessTrackerKind kind) {
  switch (kind) {
    case AccessTrackerKind::kPageWalk:
      return "page-walk";
    case AccessTrackerKind::kIdleBitmap:
      return "idle-bitmap";
    default:
      return "write-recency";
  }
}

PageRanges sampled_ranges(std::span<const MappingImage> mappings) {
  PageRanges ranges;
  for (const MappingImage& mapping : mappings) {
    if (is_sampled(mapping)) ranges.push_back(mapping.range());
  }
  return ranges;
}

// The page walk is a hundred times cheaper than the bitmap, which finds every mapping of each page.
std::vector<AccessSupport> access_support() {
  return {{AccessTrackerKind::kPageWalk, PageWalkTracker::refusal()},
          {AccessTrackerKind::kIdleBitmap, IdleBitmapTracker::refusal()},
          {AccessTrackerKind::kWriteRecency, {}}};
}

std::unique_ptr<AccessTracker> make_access_tracker(pid_t host_pid,
                                                   std::optional<AccessTrackerKind> wanted) {
  for (const AccessSupport& support : access_support()) {
    if (wanted && support.kind != *wanted) continue;
    if (!support.refusal.empty()) {
      if (!wanted) continue;
      throw SysError(std::string("use the access tracker ") + name_of(support.kind) + " (" +
                         support.refusal + ")",
                     ENOTSUP);
    }
    switch (support.kind) {
      case AccessTrackerKind::kPageWalk:
        return std::make_unique<PageWalkTracker>(host_pid);
      case AccessTrackerKind::kIdleBitmap:
        return std::make_unique<IdleBitmapTracker>(host_pid,
                                                   std::make_unique<IdleBitmap>(kIdleBitmapPath));
      default:
        break;
    }
  }
  return std::make_unique<WriteRecency>();
}

}  // namespace replpage
