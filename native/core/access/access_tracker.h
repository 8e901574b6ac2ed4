// Which pages of a process were touched (read or written) lately. All of it is a hint: a wrong
// guess makes the first touch after a promotion slower, and nothing else.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/image/mapping_image.h"
#include "core/memory/page_ranges.h"

namespace replpage {

enum class AccessTrackerKind : uint8_t { kPageWalk = 1, kIdleBitmap = 2, kWriteRecency = 3 };

// "page-walk", "idle-bitmap", "write-recency".
const char* name_of(AccessTrackerKind kind);

// What one sample found, and what it took. Times are of the CPU, in microseconds.
struct AccessSample {
  bool process_gone = false;
  // False: the bits stayed as they were, so pages touched before still count. The next sample tries
  // again.
  bool began_anew = true;
  uint64_t looked_bytes = 0;   // mapped, of the mappings that were looked at
  uint64_t touched_pages = 0;  // as visited
  // Each costs the process about 0.3 us at its next touch; a huge page has one bit.
  uint64_t cleared_bits = 0;
  uint64_t look_us = 0;   // finding them
  uint64_t clear_us = 0;  // beginning anew
};

class AccessTracker {
 public:
  // Called several times in one sample, ascending. The ranges are valid during the call.
  using Visit = std::function<void(std::span<const PageRange>)>;

  virtual ~AccessTracker() = default;
  [[nodiscard]] virtual AccessTrackerKind kind() const = 0;

  // Tells the pages of private anonymous mappings (is_sampled) that were touched since the last
  // sample, all that ever were at the first one, and begins anew. The process runs meanwhile; a
  // touch while its page is looked at may be lost. `mappings` may be older than the process's.
  // Throws SysError when this tracker does not work for this process.
  virtual AccessSample sample(std::span<const MappingImage> mappings, const Visit& visit) = 0;
};

// Locked pages can be neither cleared nor paged.
constexpr bool is_sampled(const MappingImage& mapping) {
  return mapping.kind == MappingKind::kAnonymous && (mapping.flags & kLocked) == 0;
}

// Ranges of the mappings that are sampled, ascending; neighbours are not joined, since advice for a
// range across two mappings would be given for half of it only where one refuses.
PageRanges sampled_ranges(std::span<const MappingImage> mappings);

struct AccessSupport {
  AccessTrackerKind kind;
  std::string refusal;  // why it does not work on this machine; empty: it does
};

// All back ends, the best first, each tried on memory of our own (about 100 ms at the first call).
// Any thread.
std::vector<AccessSupport> access_support();

// The best one, or the one that is wanted. Throws SysError when that does not work here.
std::unique_ptr<AccessTracker> make_access_tracker(
    pid_t host_pid, std::optional<AccessTrackerKind> wanted = std::nullopt);

}  // namespace replpage
