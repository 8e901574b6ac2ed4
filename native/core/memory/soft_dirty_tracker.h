// Dirty tracking by soft-dirty bits (/proc/PID/clear_refs and pagemap bit 55), for kernels without
// asynchronous write-protect and for processes that use userfaultfd themselves.
//
// New mappings, and whatever replaces one, are soft-dirty as a whole (VM_SOFTDIRTY); discarded
// pages show as present at the last look and absent now, also where the program has read them since
// and sees a zero page, which is not soft-dirty. mremap(2) moves whole page tables (2 MiB, at
// addresses congruent to that) without marking a page: those show by their frames, unless a page
// came into the very frame that another of the same address had left. Pages of shared mappings lose
// their bit when they are unmapped: those that were there at the last look and are not now count as
// written. Reading and clearing are two steps, so
// bits are cleared only while every thread is stopped; in a running process a look finds nothing
// new, except for the first, which clears before it reads and reports everything.
#pragma once

#include <functional>
#include <vector>

#include "core/base/unique_fd.h"
#include "core/memory/dirty_tracker.h"
#include "core/memory/frame_map.h"
#include "core/memory/pagemap_entries.h"

namespace replpage {

class SoftDirtyTracker : public DirtyTracker {
 public:
  // Whether this kernel keeps soft-dirty bits; tried on a page of our own, once. Writing to
  // clear_refs proves nothing: it succeeds on kernels without them. Zero pages must be told, too
  // (zero_frames.h).
  static bool supported();

  // `tid` shows the process's memory (memory_thread.h). Throws SysError.
  SoftDirtyTracker(pid_t host_pid, pid_t tid);
  // With files of one's own choice in the place of /proc/PID/pagemap and clear_refs.
  SoftDirtyTracker(pid_t host_pid, UniqueFd pagemap, UniqueFd clear_refs);

  [[nodiscard]] TrackerKind kind() const override { return TrackerKind::kSoftDirty; }
  void track(std::span<const MappingImage> /*mappings*/) override {}  // the kernel tracks them all
  void look(std::span<const MappingImage> mappings, MemoryView& view) override;
  void peek(std::span<const MappingImage> mappings, MemoryView& view) override;
  uint64_t count(std::span<const MappingImage> mappings, uint64_t limit) override;
  PageRanges look_shared(const MappingImage& mapping, std::span<const PageRange> parts) override;

 private:
  // Entries of the range, handed over in pieces; stops when `visit` returns false.
  void read_entries(PageRange range,
                    const std::function<bool(std::span<uint64_t>, uint64_t)>& visit);
  // Gives the pages that are there.
  FrameMap read_private(std::span<const MappingImage> mappings, MemoryView& view);
  PageRanges read_shared(std::span<const MappingImage> mappings);
  void read_shared(const MappingImage& mapping, PageRanges& present, PageRanges& written);
  void clear();
  [[nodiscard]] bool all_threads_stopped() const;

  pid_t pid_;
  UniqueFd pagemap_;
  UniqueFd clear_refs_;
  bool first_ = true;
  FrameMap private_;           // at the last look
  PageRanges shared_present_;  // at the last look
  PageRanges shared_written_;  // addresses in shared mappings, not asked for yet
  std::vector<uint64_t> entries_;
};

}  // namespace replpage
