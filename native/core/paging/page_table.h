// The process state table of a group: for every page of its private anonymous memory how long ago
// it was written and touched, and where the replica has it. Needs no system call. Not thread-safe.
//
// A page costs 3 bytes, and 8 more in a block of 512 that has one in the page store.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "core/image/mapping_image.h"
#include "core/memory/page_ranges.h"
#include "core/memory/page_run.h"
#include "core/paging/page_blocks.h"
#include "core/store/store_location.h"

namespace replpage {

// Of ages, which are counted in samples: so long ago, or longer.
inline constexpr uint8_t kOldest = 255;

struct PageSums {
  uint64_t resident_bytes = 0, cold_bytes = 0, absent_bytes = 0;
  uint64_t pending_bytes = 0;    // of the resident ones: pending, or stored and not cold yet
  uint64_t candidate_bytes = 0;  // of the resident ones: may be evicted, and are not leaving
  PageSums& operator+=(const PageSums& other);
  bool operator==(const PageSums&) const = default;
};

// [age]: pages that were touched last so many samples ago; kOldest: or longer.
using AgeHistogram = std::array<uint64_t, kOldest + 1>;

// Pages of one process that are in one state. When `stored`, the store has all of them, the first
// at `location`, each of the others 4096 further on.
struct PageGroup {
  int32_t pid = 0;
  PageRange range;
  bool stored = false;
  uint64_t location = 0;
  bool operator==(const PageGroup&) const = default;
};

// Pages of a mapping, or of a part of it: touched in the last samples, resident besides, cold,
// absent.
struct PageCounts {
  uint64_t hot = 0, warm = 0, cold = 0, absent = 0;
  bool operator==(const PageCounts&) const = default;
};

class PageTable {
 public:
  PageTable();
  ~PageTable();
  PageTable(const PageTable&) = delete;
  PageTable& operator=(const PageTable&) = delete;

  // Takes in the mappings of a process as of an epoch, before note_runs() of that epoch: pages that
  // are in no private anonymous mapping are forgotten and not noted. Those of locked mappings and
  // of growing stacks are kept resident, and those of `kept`: cold ones count as touched again.
  // Cheap when nothing has changed.
  void fit(int32_t pid, std::span<const MappingImage> mappings, const PageRanges& kept = {});
  // Forgets a process that has ended.
  void forget(int32_t pid);

  // Runs of a committed epoch: data is resident and written now, cold is where data_offset says,
  // zero and absent pages are none. The later of two runs for one page wins. Runs of shared objects
  // are passed over.
  void note_runs(std::span<const PageRun> runs);

  // All pages of the process get one sample older. To be called once for each sample, before its
  // note_touched().
  void grow_older(int32_t pid);
  // Pages that a sample found touched, ascending.
  void note_touched(int32_t pid, std::span<const PageRange> ranges);

  // Resident pages are on their way into the store. A write ends that.
  void note_pending(const PageGroup& pages);
  // The store has them durably, as they were when noted as pending. Returns those that are resident
  // and still pending, thus were not written since: they have a location now, which they lose with
  // the next write, and are to be made cold by a run of the next epoch. What else the store was
  // given is of no use.
  std::vector<PageGroup> note_stored(const PageGroup& pages);
  // They stay resident: the store could not write them, or they are not to become cold.
  void note_not_stored(const PageGroup& pages);
  // The store has moved pages, cold or resident, from one place to another. Returns how many were
  // where it took them from; others were not changed.
  uint64_t note_moved(const PageGroup& from, uint64_t to);

  [[nodiscard]] PageSums sums() const;
  [[nodiscard]] PageSums sums(int32_t pid) const;
  [[nodiscard]] std::vector<int32_t> pids() const;

  // Candidates for eviction by age.
  [[nodiscard]] AgeHistogram resident_ages() const;
  // Cold pages that were touched since they are cold, or must not be so any more, by age.
  [[nodiscard]] AgeHistogram touched_again_ages() const;

  // Candidates for eviction that were not touched for `age_min` samples, at most `pages_max` pages
  // from the lowest addresses up.
  [[nodiscard]] std::vector<PageGroup> oldest(uint8_t age_min, uint64_t pages_max) const;
  // Cold pages that were touched again within the last `age_max` samples.
  [[nodiscard]] std::vector<PageGroup> touched_again(uint8_t age_max, uint64_t pages_max) const;

  // The same, and they are not touched again any more: whoever takes them brings them back.
  std::vector<PageGroup> take_touched_again(uint8_t age_max, uint64_t pages_max);

  // Pages that the store must keep, by segment.
  [[nodiscard]] const std::unordered_map<uint64_t, uint64_t>& live_pages() const { return live_; }
  // Those of some segments, cold or resident.
  [[nodiscard]] std::vector<PageGroup> pages_in(std::span<const uint64_t> segments,
                                                uint64_t pages_max) const;
  // All cold pages, for a complete list of what an epoch has in the store.
  [[nodiscard]] std::vector<PageGroup> cold_pages(uint64_t pages_max) const;

  // Counts of `cells` equal parts of a range (the last may be shorter); hot: touched within
  // `hot_age` samples.
  [[nodiscard]] std::vector<PageCounts> describe(int32_t pid, PageRange range, uint8_t hot_age,
                                                 size_t cells = 1) const;

  // Native memory that the table takes.
  [[nodiscard]] uint64_t memory_bytes() const;

  struct Process;

 private:
  // Runs commonly stay with one process for long.
  Process* find(int32_t pid) const;
  void note_run(Process& process, const PageRun& run, PageRange range);
  void note_data(Process& process, PageRange range, bool eligible);
  void note_cold(Process& process, PageRange range, bool eligible, uint64_t location);
  void drop(Process& process, PageRange range);
  void set_eligible(Process& process, PageRange range, bool eligible);
  void put(Process& process, PageBlock& block, size_t page, uint8_t flags);
  void store_at(PageBlock& block, size_t page, uint64_t location);
  uint64_t& live_at(uint64_t location);
  void unlive(uint64_t location);
  template <class WantsBlock, class Matches>
  std::vector<PageGroup> collect(uint64_t pages_max, WantsBlock&& wants_block,
                                 Matches&& matches) const;

  std::map<int32_t, std::unique_ptr<Process>> processes_;
  std::unordered_map<uint64_t, uint64_t> live_;
  uint64_t* last_live_ = nullptr;  // of last_segment_: locations stay in one for long
  uint64_t last_segment_ = 0;
};

}  // namespace replpage
