// The page runs of one epoch while it is being put together.
#pragma once

#include <vector>

#include "core/image/group_image.h"
#include "core/memory/memory_capture.h"
#include "core/memory/page_run.h"
#include "core/staging/staging.h"

namespace replpage {

// Puts content into the staging area and keeps the runs, so that they can still be clipped, renamed
// or turned into lazy ranges before they are sent.
class EpochRuns final : public PageSink {
 public:
  explicit EpochRuns(StagingArea& staging) : staging_(staging) {}

  std::span<uint8_t> reserve(uint64_t bytes) override { return staging_.reserve(bytes); }
  [[nodiscard]] uint64_t chunk_bytes_max() const override { return staging_.chunk_bytes_max(); }
  uint64_t keep(uint64_t used) override { return staging_.keep(used); }
  void add(const PageRun& run) override;

  [[nodiscard]] bool empty() const { return runs_.empty(); }
  [[nodiscard]] const std::vector<PageRun>& all() const { return runs_; }
  std::span<uint8_t> reserve_in_memory(uint64_t bytes) { return staging_.reserve_in_memory(bytes); }
  [[nodiscard]] uint64_t data_pages() const { return data_pages_; }
  void clear();

  // What of the runs still fits `image`: parts of mappings, processes and objects that are gone
  // since they were copied are left out. Where memory is to be read lazily, the keeper forgets what
  // it was given.
  [[nodiscard]] PageRunList fitted(const GroupImage& image) const;

  // The private mappings of `image` that any run touches, whole, to be read lazily instead.
  [[nodiscard]] std::vector<LazyRange> as_lazy(const GroupImage& image) const;

 private:
  StagingArea& staging_;
  std::vector<PageRun> runs_;
  uint64_t data_pages_ = 0;
};

// Takes what is copied while the primary stands still. It never waits for a disk, and after
// `deadline_us` (see now_us()) it takes no more: reserve() throws NotThisTime.
class FrozenRuns final : public PageSink {
 public:
  FrozenRuns(EpochRuns& runs, uint64_t deadline_us) : runs_(runs), deadline_us_(deadline_us) {}

  std::span<uint8_t> reserve(uint64_t bytes) override;
  [[nodiscard]] uint64_t chunk_bytes_max() const override { return runs_.chunk_bytes_max(); }
  uint64_t keep(uint64_t used) override { return runs_.keep(used); }
  void add(const PageRun& run) override { runs_.add(run); }

 private:
  EpochRuns& runs_;
  uint64_t deadline_us_;
};

}  // namespace replpage
