// Dirty tracking by userfaultfd with asynchronous write-protect, driven from outside the process.
//
// The kernel resolves write faults by itself and remembers them in the page tables; PAGEMAP_SCAN
// reads and arms again in one call. Private pages count as
//   written  present or swapped out, and not armed
//   gone     present at the last look and now neither present nor swapped out: discarded
// Holes of sparse memory are never armed, so that no page tables are filled for them and huge pages
// can appear in them; whatever appears in a hole is not armed and thus written. In nearly full
// memory holes are armed, so that one scan shows discards too. What replaces a mapping (munmap
// and mmap, mremap, brk) is not registered, which a scan for untracked mappings finds.
#pragma once

#include <functional>
#include <memory>

#include "core/memory/dirty_tracker.h"
#include "core/memory/pagemap_scan.h"
#include "core/memory/write_protect_uffd.h"

namespace replpage {

class UffdWpTracker : public DirtyTracker {
 public:
  // The process must be stopped. Throws SysError: ESRCH when it is gone, EBUSY when it has a
  // userfaultfd of its own.
  UffdWpTracker(pid_t host_pid, pid_t tid, const MemoryCapture::Injector& injector);
  // Without a userfaultfd: peek() and count() find all memory written, look() is of no use.
  UffdWpTracker(pid_t host_pid, pid_t tid);

  [[nodiscard]] TrackerKind kind() const override { return TrackerKind::kUffdWp; }
  void track(std::span<const MappingImage> mappings) override;
  void look(std::span<const MappingImage> mappings, MemoryView& view) override;
  void peek(std::span<const MappingImage> mappings, MemoryView& view) override;
  uint64_t count(std::span<const MappingImage> mappings, uint64_t limit) override;
  PageRanges look_shared(const MappingImage& mapping, std::span<const PageRange> parts) override;

 private:
  // Mappings of one kind that follow each other (in the list, not in memory): one scan covers them.
  struct Group {
    std::span<const MappingImage> mappings;
    bool file_backed = false;
    [[nodiscard]] PageRange hull() const { return {mappings.front().start, mappings.back().end}; }
  };

  template <class Visit>
  static void for_each_group(std::span<const MappingImage> mappings, Visit&& visit);

  PageRanges untracked_in(PageRange hull);
  PageRanges looked_at(const Group& group, bool arm);
  uint64_t count_shared(PageRange mapping, uint64_t limit);
  PageRanges fresh_in(PageRange mapping);
  void register_private(PageRange range);
  void register_shared(PageRange range);
  void look_anonymous(const Group& group, bool arm, MemoryView& view);
  void look_file_backed(const Group& group, bool arm, MemoryView& view);
  PageRanges present_in(PageRange hull, std::span<const PageRange> mapped);
  PageRanges look_dense(std::span<const PageRange> dense, bool arm, PageRanges& absent);
  void peek_dense(PageRange range, PageRanges& written);
  void choose_dense(std::span<const MappingImage> mappings, const MemoryView& view);

  pid_t pid_;
  PagemapScan pages_;
  WriteProtectUffd uffd_;
  bool tracks_ = true;
  PageRanges copied_file_pages_;  // of file-backed private mappings: no longer the file's
  bool has_looked_ = false;
  bool tracked_before_ = false;
  PageRanges dense_;            // nearly full anonymous memory
  PageRanges appeared_;         // private, tracked since the last look
  PageRanges appeared_shared_;  // shared, tracked and not looked at yet
  PageRanges never_written_;    // shared mappings that cannot be made writable
};

}  // namespace replpage
