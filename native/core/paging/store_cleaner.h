// Chooses which cold pages are written to the page store anew, so that segments that hold few of
// them become empty and can be removed. Pure, not thread-safe.
//
// The new place is told to the replica like any other, with an epoch that does not write the page;
// a segment goes when no committed epoch refers to it any more. So cleaning needs no rule of its
// own.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "core/paging/page_table.h"

namespace replpage {

// Pages that the store has at another place too.
struct MovedPages {
  PageGroup from;
  uint64_t to = 0;
};

class StoreCleaner {
 public:
  // Segments of which less than this part of the pages is still needed are cleaned.
  static constexpr double kSparse = 0.5;
  // Where the store is full, and pages come back into RAM to make room.
  static constexpr double kSparseWhenFull = 0.8;
  // So fast, on average, and so much at once: it takes part of one processor, and of the disk.
  static constexpr uint64_t kPagesPerSecond = 2048;
  static constexpr uint64_t kPagesMax = 2048;

  // Pages were appended to a segment.
  void note_written(uint64_t segment, uint64_t pages) { pages_[segment] += pages; }
  void note_removed(uint64_t segment) { pages_.erase(segment); }

  // What is to be written anew now, of the sparsest segment; empty: nothing. `newest`: the segment
  // that is appended to, which is left alone.
  std::vector<PageGroup> choose(const PageTable& table, uint64_t newest, bool full,
                                uint64_t now_us);

  // The last that was chosen is under way; until its answer nothing is chosen.
  void begin(uint64_t ticket, std::vector<PageGroup> groups);
  [[nodiscard]] bool is_own(uint64_t ticket) const { return batch_ && batch_->ticket == ticket; }
  // The answer to a batch of its own: what is stored now, ascending; empty: it failed.
  void finish(std::span<const PageGroup> written);
  // Of the batch that is under way.
  [[nodiscard]] std::span<const PageGroup> under_way() const;

  // What has been written anew since the last call.
  std::vector<MovedPages> take_moved() { return std::exchange(moved_, {}); }

 private:
  struct Batch {
    uint64_t ticket = 0;
    std::vector<PageGroup> groups;
  };
  std::optional<uint64_t> sparsest(const PageTable& table, uint64_t newest, double below) const;

  std::map<uint64_t, uint64_t> pages_;  // written, by segment
  std::optional<Batch> batch_;
  std::vector<MovedPages> moved_;
  uint64_t credit_us_ = 0;  // the time that pages up to now are paid with
};

}  // namespace replpage
