// What the dirty trackers (uffd-wp, soft-dirty) have in common.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/memory/memory_capture.h"
#include "core/memory/page_ranges.h"

namespace replpage {

// Mappings whose pages belong to the process alone, thus are copied with it.
constexpr bool holds_private_pages(MappingKind kind) {
  return kind == MappingKind::kAnonymous || kind == MappingKind::kFilePrivate ||
         kind == MappingKind::kMemfdPrivate;
}

// Private mappings of a file: only pages that were written are no longer the file's.
constexpr bool is_file_backed_private(MappingKind kind) {
  return kind == MappingKind::kFilePrivate || kind == MappingKind::kMemfdPrivate;
}

// Private pages of a process, as one look found them. All lists ascend.
struct MemoryView {
  PageRanges appeared;  // new mappings, and others put in the place of old ones
  PageRanges written;   // since the last look; those in `appeared` all count as written
  PageRanges present;   // hold content of their own, or may: resident or swapped out
  PageRanges absent;    // hold none any more; besides those that were present at the last look only
};

class DirtyTracker {
 public:
  virtual ~DirtyTracker() = default;
  [[nodiscard]] virtual TrackerKind kind() const = 0;

  // Takes in what is new in `mappings`. The process must be stopped and `mappings` read in this
  // very stop: tracking part of a mapping would split it, and the program could not mremap the
  // whole of it any more. Looks leave out what was not taken in. Throws SysError.
  virtual void track(std::span<const MappingImage> mappings) = 0;

  // Looks at the private mappings and begins anew, so that the next look reports later writes only.
  // Pages must be read after the look, never before: a write between look and read is reported
  // again by the next one. May find nothing new while the process runs: soft-dirty bits cannot be
  // read and cleared in one step. Throws SysError; what it found is then lost.
  virtual void look(std::span<const MappingImage> mappings, MemoryView& view) = 0;

  // As look(), but the next look reports the same again, and more. Not for `appeared` mappings:
  // their pages show as written. look_shared() knows what there was to see until now.
  virtual void peek(std::span<const MappingImage> mappings, MemoryView& view) = 0;

  // Pages that look() and look_shared() would report as written, about; stops at `limit`.
  virtual uint64_t count(std::span<const MappingImage> mappings, uint64_t limit) = 0;

  // Pages of shared mappings (ascending, parts of one mapping) that are not known to be unchanged
  // through this process since the last call, and begins anew.
  virtual PageRanges look_shared(const MappingImage& mapping, std::span<const PageRange> parts) = 0;
};

}  // namespace replpage
