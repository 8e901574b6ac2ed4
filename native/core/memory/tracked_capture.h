// MemoryCapture on top of a DirtyTracker: what changed is the difference of two looks.
#pragma once

#include <memory>
#include <optional>

#include "core/memory/dirty_tracker.h"
#include "core/memory/memory_capture.h"
#include "core/memory/page_copier.h"
#include "core/memory/process_page_reader.h"

namespace replpage {

class TrackedCapture : public MemoryCapture {
 public:
  // `tid` shows the process's memory (memory_thread.h). Throws SysError.
  TrackedCapture(pid_t host_pid, pid_t tid, int32_t group_pid,
                 std::unique_ptr<DirtyTracker> tracker)
      : host_pid_(host_pid),
        group_pid_(group_pid),
        tracker_(std::move(tracker)),
        reader_(host_pid, tid),
        copier_(group_pid) {}

  [[nodiscard]] TrackerKind tracker() const override { return tracker_->kind(); }
  void track(const std::vector<MappingImage>& mappings) override { tracker_->track(mappings); }
  [[nodiscard]] bool serves_process() const override {
    return reader_.probe(0) != ProcessPageReader::Probe::kNoAddressSpace;
  }
  CopyRound copy_changed(const std::vector<MappingImage>& mappings, PageSink& sink) override;
  void copy_again(std::span<const PageRange> written, std::span<const PageRange> absent) override;
  OwedPart copy_again_from(uint64_t start, uint64_t bytes_max) override;
  Comparison compare(const std::vector<MappingImage>& mappings, uint64_t start, uint64_t bytes_max,
                     const ReplicaHashes& theirs) override;
  uint64_t count_dirty(const std::vector<MappingImage>& mappings, uint64_t limit) override;
  std::vector<LazyRange> copy_last(const std::vector<MappingImage>& mappings, PageSink& sink,
                                   uint64_t copy_pages_max) override;
  void look_last(const std::vector<MappingImage>& mappings) override;
  std::vector<PageRange> look_shared(const MappingImage& mapping,
                                     std::span<const PageRange> parts) override {
    return tracker_->look_shared(mapping, parts);
  }

 private:
  CopyRound copy_view(const std::vector<MappingImage>& mappings, bool everything, PageSink& sink);
  // Tells pages that the program discarded from memory that is no longer there: the process is
  // gone, or the OOM reaper has begun to take its pages.
  [[nodiscard]] bool memory_lost(const PageRanges& present, const PageRanges& vanished,
                                 const PageRanges& lazy) const;
  void add_absent(std::span<const PageRange> ranges, std::span<const MappingImage> mappings,
                  PageSink& sink, CopyRound& round) const;
  // False when pages of existing mappings could not be read.
  bool copy_pages(std::span<const PageRange> ranges, std::span<const MappingImage> mappings,
                  PageSink& sink, CopyRound& round);
  void add_owed(MemoryView& view);
  [[nodiscard]] PageRanges part_of_present(uint64_t start, uint64_t bytes_max) const;
  PageRanges differing(const PageRange& range, const ReplicaHashes& theirs, uint64_t& compared);
  [[nodiscard]] bool is_mapped(uint64_t address) const;

  pid_t host_pid_;
  int32_t group_pid_;
  std::unique_ptr<DirtyTracker> tracker_;
  ProcessPageReader reader_;
  PageCopier copier_;
  std::optional<MemoryView> last_look_;
  PageRanges present_;    // at the last copy
  bool copy_all_ = true;  // nothing was copied yet, or a look failed
  bool gone_ = false;     // the last copy found no memory any more
  // Of looks whose pages have not all been copied, or were copied in vain.
  PageRanges owed_appeared_, owed_written_, owed_absent_;
};

}  // namespace replpage
