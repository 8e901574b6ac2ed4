#include "core/paging/page_table.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

namespace replpage {

struct PageTable::Process {
  PageRanges mapped;                                             // private anonymous mappings
  PageRanges eligible;                                           // those of them that may be paged
  uint64_t resident = 0, cold = 0, leaving = 0, candidates = 0;  // pages
  PageBlocks blocks;
};

namespace {

constexpr PageRange kEverything{0, UINT64_MAX};

// Calls use(part, inside) for the parts of `range` that are in one of `ranges`, or in none.
template <class Use>
void split(PageRange range, const PageRanges& ranges, Use&& use) {
  auto at = std::upper_bound(
      ranges.begin(), ranges.end(), range.start,
      [](uint64_t address, const PageRange& other) { return address < other.end; });
  while (range.start < range.end) {
    const bool inside = at != ranges.end() && at->start <= range.start;
    const uint64_t border = at == ranges.end() ? range.end : inside ? at->end : at->start;
    const PageRange part{range.start, std::min(range.end, border)};
    use(part, inside);
    range.start = part.end;
    if (inside) ++at;
  }
}

void grow(std::array<uint8_t, PageBlock::kPages>& ages) {
  for (uint8_t& age : ages) age = static_cast<uint8_t>(age + (age != kOldest ? 1 : 0));
}

// Appends a page to the groups, joining it where it goes on like the last one.
void append_page(std::vector<PageGroup>& groups, int32_t pid, uint64_t address, bool stored,
                 uint64_t location) {
  if (!groups.empty()) {
    PageGroup& last = groups.back();
    if (last.pid == pid && last.range.end == address && last.stored == stored &&
        (!stored || last.location + last.range.bytes() == location)) {
      last.range.end += kPageSize;
      return;
    }
  }
  groups.push_back({pid, {address, address + kPageSize}, stored, location});
}

}  // namespace

PageSums& PageSums::operator+=(const PageSums& other) {
  resident_bytes += other.resident_bytes;
  cold_bytes += other.cold_bytes;
  absent_bytes += other.absent_bytes;
  pending_bytes += other.pending_bytes;
  candidate_bytes += other.candidate_bytes;
  return *this;
}

PageTable::PageTable() = default;
PageTable::~PageTable() = default;

PageTable::Process* PageTable::find(int32_t pid) const {
  const auto found = processes_.find(pid);
  return found == processes_.end() ? nullptr : found->second.get();
}

// Counts of live pages, by segment.
uint64_t& PageTable::live_at(uint64_t location) {
  const uint64_t segment = segment_of(location);
  if (last_live_ == nullptr || last_segment_ != segment) {
    last_live_ = &live_[segment];
    last_segment_ = segment;
  }
  return *last_live_;
}

void PageTable::unlive(uint64_t location) {
  if (--live_at(location) != 0) return;
  live_.erase(last_segment_);
  last_live_ = nullptr;
}

void PageTable::store_at(PageBlock& block, size_t page, uint64_t location) {
  if (!block.locations) block.locations = std::make_unique<PageBlock::Locations>();
  (*block.locations)[page] = location;
  ++live_at(location);
}

// Every change of flags. Who sets kPageStored gives the location first, with store_at().
void PageTable::put(Process& process, PageBlock& block, size_t page, uint8_t flags) {
  const uint8_t old = std::exchange(block.flags[page], flags);
  const auto change = [old, flags](uint8_t bit) {
    return ((flags & bit) != 0 ? 1 : 0) - ((old & bit) != 0 ? 1 : 0);
  };
  const int candidates = (is_candidate(flags) ? 1 : 0) - (is_candidate(old) ? 1 : 0);
  const auto add = [](auto& sum, int difference) {
    sum = static_cast<std::remove_reference_t<decltype(sum)>>(sum + difference);
  };
  add(process.resident, change(kPageResident));
  add(block.resident, change(kPageResident));
  add(process.cold, change(kPageCold));
  add(block.cold, change(kPageCold));
  add(process.leaving, (is_leaving(flags) ? 1 : 0) - (is_leaving(old) ? 1 : 0));
  add(process.candidates, candidates);
  add(block.candidates, candidates);
  const int stored = change(kPageStored);
  if (stored < 0) unlive((*block.locations)[page]);
  add(block.stored, stored);
  if (block.stored == 0) block.locations.reset();
}

void PageTable::fit(int32_t pid, std::span<const MappingImage> mappings, const PageRanges& kept) {
  PageRanges mapped, eligible;
  for (const MappingImage& mapping : mappings) {
    if (mapping.kind != MappingKind::kAnonymous) continue;
    append_range(mapped, mapping.range());
    if ((mapping.flags & (kLocked | kGrowsDown)) == 0) append_range(eligible, mapping.range());
  }
  if (!kept.empty()) eligible = subtract_ranges(eligible, kept);
  auto& process = processes_[pid];
  if (!process) process = std::make_unique<Process>();
  if (process->mapped == mapped && process->eligible == eligible) return;
  for (const PageRange& range : subtract_ranges(process->mapped, mapped)) drop(*process, range);
  for (const PageRange& range : subtract_ranges(process->eligible, eligible)) {
    set_eligible(*process, range, false);
  }
  for (const PageRange& range : subtract_ranges(eligible, process->eligible)) {
    set_eligible(*process, range, true);
  }
  process->mapped = std::move(mapped);
  process->eligible = std::move(eligible);
}

void PageTable::forget(int32_t pid) {
  if (Process* const process = find(pid)) drop(*process, kEverything);
  processes_.erase(pid);
}

void PageTable::set_eligible(Process& process, PageRange range, bool eligible) {
  process.blocks.visit(range, [&](PageBlock& block, uint64_t, size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) {
      const uint8_t flags = block.flags[i];
      if ((flags & (kPageResident | kPageCold)) == 0) continue;
      if (eligible) {
        put(process, block, i, flags | kPageEligible);
      } else {
        const uint8_t again = (flags & kPageCold) != 0 ? kPageAgain : 0;
        const uint8_t leaving = is_leaving(flags) ? kPagePending | kPageStored : 0;
        const uint8_t dropped = kPageEligible | leaving;
        put(process, block, i, static_cast<uint8_t>((flags & ~dropped) | again));
        if (again != 0) block.touched[i] = 0;
      }
    }
  });
}

void PageTable::drop(Process& process, PageRange range) {
  process.blocks.visit(range, [&](PageBlock& block, uint64_t, size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) {
      if (block.flags[i] != 0) put(process, block, i, 0);
    }
  });
}

void PageTable::note_data(Process& process, PageRange range, bool eligible) {
  const uint8_t flags = eligible ? kCandidate : kPageResident;
  for (uint64_t at = range.start; at < range.end;) {
    PageBlock& block = process.blocks.at(at);
    const size_t first = at / kPageSize % PageBlock::kPages;
    const size_t last = std::min(PageBlock::kPages, first + (range.end - at) / kPageSize);
    for (size_t i = first; i < last; ++i) {
      if (block.flags[i] != flags) put(process, block, i, flags);
    }
    std::memset(&block.written[first], 0, last - first);
    std::memset(&block.touched[first], 0, last - first);
    at += (last - first) * kPageSize;
  }
}

// Ages stay: what was evicted is as old as it was.
void PageTable::note_cold(Process& process, PageRange range, bool eligible, uint64_t location) {
  const uint8_t flags = kPageCold | kPageStored | (eligible ? kPageEligible : kPageAgain);
  for (uint64_t at = range.start; at < range.end; at += kPageSize, location += kPageSize) {
    PageBlock& block = process.blocks.at(at);
    const size_t page = at / kPageSize % PageBlock::kPages;
    if ((block.flags[page] & (kPageResident | kPageCold)) == 0) {
      block.written[page] = block.touched[page] = kOldest;
    }
    const uint8_t old = block.flags[page];
    if ((old & kPageStored) != 0) put(process, block, page, old & ~kPageStored);
    store_at(block, page, location);
    put(process, block, page, flags);
  }
}

void PageTable::note_run(Process& process, const PageRun& run, PageRange range) {
  if (run.kind == PageRunKind::kZero || run.kind == PageRunKind::kAbsent) {
    drop(process, range);
    return;
  }
  split(range, process.eligible, [&](PageRange part, bool eligible) {
    if (run.kind == PageRunKind::kData) note_data(process, part, eligible);
    if (run.kind != PageRunKind::kCold) return;
    note_cold(process, part, eligible, run.data_offset + (part.start - run.address));
  });
}

void PageTable::note_runs(std::span<const PageRun> runs) {
  Process* process = nullptr;
  int32_t pid = 0;
  for (const PageRun& run : runs) {
    if (run.pid == 0) continue;
    if (run.pid != pid) process = find(run.pid);
    pid = run.pid;
    if (process == nullptr) continue;
    split({run.address, run.address + run.length}, process->mapped,
          [&](PageRange part, bool mapped) {
            if (mapped) note_run(*process, run, part);
          });
  }
}

void PageTable::grow_older(int32_t pid) {
  Process* const process = find(pid);
  if (process == nullptr) return;
  process->blocks.visit(kEverything, [](PageBlock& block, uint64_t, size_t, size_t) {
    grow(block.written);
    grow(block.touched);
  });
}

void PageTable::note_touched(int32_t pid, std::span<const PageRange> ranges) {
  Process* const process = find(pid);
  if (process == nullptr) return;
  for (const PageRange& range : ranges) {
    process->blocks.visit(range, [](PageBlock& block, uint64_t, size_t first, size_t last) {
      std::memset(&block.touched[first], 0, last - first);
      if (block.cold == 0) return;
      // Not counted anywhere, so put() is not needed.
      for (size_t i = first; i < last; ++i) {
        if ((block.flags[i] & kPageCold) != 0) block.flags[i] |= kPageAgain;
      }
    });
  }
}

void PageTable::note_pending(const PageGroup& pages) {
  Process* const process = find(pages.pid);
  if (process == nullptr) return;
  process->blocks.visit(pages.range, [&](PageBlock& block, uint64_t, size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) {
      if (is_candidate(block.flags[i])) put(*process, block, i, block.flags[i] | kPagePending);
    }
  });
}

std::vector<PageGroup> PageTable::note_stored(const PageGroup& pages) {
  std::vector<PageGroup> taken;
  Process* const process = find(pages.pid);
  if (process == nullptr) return taken;
  process->blocks.visit(
      pages.range, [&](PageBlock& block, uint64_t base, size_t first, size_t last) {
        for (size_t i = first; i < last; ++i) {
          const uint8_t flags = block.flags[i];
          if ((flags & kPagePending) == 0) continue;
          const uint64_t address = base + i * kPageSize;
          const uint64_t location = pages.location + (address - pages.range.start);
          store_at(block, i, location);
          put(*process, block, i, static_cast<uint8_t>(kCandidate | kPageStored));
          append_page(taken, pages.pid, address, true, location);
        }
      });
  return taken;
}

void PageTable::note_not_stored(const PageGroup& pages) {
  Process* const process = find(pages.pid);
  if (process == nullptr) return;
  process->blocks.visit(pages.range, [&](PageBlock& block, uint64_t, size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) {
      const uint8_t flags = block.flags[i];
      if (is_leaving(flags)) {
        put(*process, block, i, static_cast<uint8_t>(flags & ~(kPagePending | kPageStored)));
      }
    }
  });
}

uint64_t PageTable::note_moved(const PageGroup& from, uint64_t to) {
  uint64_t moved = 0;
  Process* const process = find(from.pid);
  if (process == nullptr) return moved;
  process->blocks.visit(from.range,
                        [&](PageBlock& block, uint64_t base, size_t first, size_t last) {
                          for (size_t i = first; i < last; ++i) {
                            const uint64_t offset = base + i * kPageSize - from.range.start;
                            if ((block.flags[i] & kPageStored) == 0) continue;
                            const uint64_t old = (*block.locations)[i];
                            if (old != from.location + offset) continue;
                            store_at(block, i, to + offset);
                            unlive(old);
                            ++moved;
                          }
                        });
  return moved;
}

PageSums PageTable::sums(int32_t pid) const {
  const Process* const process = find(pid);
  if (process == nullptr) return {};
  const uint64_t mapped = total_bytes(process->mapped);
  PageSums sums;
  sums.resident_bytes = process->resident * kPageSize;
  sums.cold_bytes = process->cold * kPageSize;
  sums.absent_bytes = mapped - sums.resident_bytes - sums.cold_bytes;
  sums.pending_bytes = process->leaving * kPageSize;
  sums.candidate_bytes = process->candidates * kPageSize;
  return sums;
}

PageSums PageTable::sums() const {
  PageSums all;
  for (const auto& [pid, process] : processes_) all += sums(pid);
  return all;
}

std::vector<int32_t> PageTable::pids() const {
  std::vector<int32_t> all;
  for (const auto& [pid, process] : processes_) all.push_back(pid);
  return all;
}

uint64_t PageTable::memory_bytes() const {
  uint64_t bytes = sizeof *this;
  for (const auto& [pid, process] : processes_) {
    bytes += sizeof *process + process->blocks.memory_bytes() +
             (process->mapped.capacity() + process->eligible.capacity()) * sizeof(PageRange);
  }
  return bytes;
}

AgeHistogram PageTable::resident_ages() const {
  AgeHistogram ages{};
  for (const auto& [pid, process] : processes_) {
    process->blocks.visit_const(kEverything,
                                [&ages](const PageBlock& block, uint64_t, size_t, size_t) {
                                  if (block.candidates == 0) return;
                                  for (size_t i = 0; i < PageBlock::kPages; ++i) {
                                    ages[block.touched[i]] += is_candidate(block.flags[i]) ? 1 : 0;
                                  }
                                });
  }
  return ages;
}

AgeHistogram PageTable::touched_again_ages() const {
  AgeHistogram ages{};
  for (const auto& [pid, process] : processes_) {
    process->blocks.visit_const(
        kEverything, [&ages](const PageBlock& block, uint64_t, size_t, size_t) {
          if (block.cold == 0) return;
          for (size_t i = 0; i < PageBlock::kPages; ++i) {
            ages[block.touched[i]] += (block.flags[i] & kPageAgain) != 0 ? 1 : 0;
          }
        });
  }
  return ages;
}

template <class WantsBlock, class Matches>
std::vector<PageGroup> PageTable::collect(uint64_t pages_max, WantsBlock&& wants_block,
                                          Matches&& matches) const {
  std::vector<PageGroup> groups;
  for (const auto& entry : processes_) {
    const int32_t pid = entry.first;
    entry.second->blocks.visit_const(kEverything, [&](const PageBlock& block, uint64_t base, size_t,
                                                      size_t) {
      if (pages_max == 0 || !wants_block(block)) return;
      for (size_t i = 0; i < PageBlock::kPages && pages_max > 0; ++i) {
        if (!matches(block, i)) continue;
        const bool stored = (block.flags[i] & kPageStored) != 0;
        append_page(groups, pid, base + i * kPageSize, stored, stored ? (*block.locations)[i] : 0);
        --pages_max;
      }
    });
  }
  return groups;
}

std::vector<PageGroup> PageTable::oldest(uint8_t age_min, uint64_t pages_max) const {
  return collect(
      pages_max, [](const PageBlock& block) { return block.candidates != 0; },
      [age_min](const PageBlock& block, size_t i) {
        return is_candidate(block.flags[i]) && block.touched[i] >= age_min;
      });
}

std::vector<PageGroup> PageTable::touched_again(uint8_t age_max, uint64_t pages_max) const {
  return collect(
      pages_max, [](const PageBlock& block) { return block.cold != 0; },
      [age_max](const PageBlock& block, size_t i) {
        return (block.flags[i] & kPageAgain) != 0 && block.touched[i] <= age_max;
      });
}

std::vector<PageGroup> PageTable::take_touched_again(uint8_t age_max, uint64_t pages_max) {
  std::vector<PageGroup> groups = touched_again(age_max, pages_max);
  for (const PageGroup& group : groups) {
    find(group.pid)->blocks.visit(
        group.range, [](PageBlock& block, uint64_t, size_t first, size_t last) {
          for (size_t i = first; i < last; ++i) {
            block.flags[i] = static_cast<uint8_t>(block.flags[i] & ~kPageAgain);
          }
        });
  }
  return groups;
}

std::vector<PageGroup> PageTable::pages_in(std::span<const uint64_t> segments,
                                           uint64_t pages_max) const {
  return collect(
      pages_max, [](const PageBlock& block) { return block.stored != 0; },
      [segments](const PageBlock& block, size_t i) {
        if ((block.flags[i] & kPageStored) == 0) return false;
        const uint64_t segment = segment_of((*block.locations)[i]);
        return std::find(segments.begin(), segments.end(), segment) != segments.end();
      });
}

std::vector<PageGroup> PageTable::cold_pages(uint64_t pages_max) const {
  return collect(
      pages_max, [](const PageBlock& block) { return block.cold != 0; },
      [](const PageBlock& block, size_t i) { return (block.flags[i] & kPageCold) != 0; });
}

std::vector<PageCounts> PageTable::describe(int32_t pid, PageRange range, uint8_t hot_age,
                                            size_t cells) const {
  const uint64_t pages = range.pages();
  if (cells == 0 || pages == 0) return {};
  const uint64_t per_cell = (pages + cells - 1) / cells;
  std::vector<PageCounts> counts((pages + per_cell - 1) / per_cell);
  for (size_t i = 0; i < counts.size(); ++i) {
    counts[i].absent = std::min(per_cell, pages - i * per_cell);
  }
  const Process* const process = find(pid);
  if (process == nullptr) return counts;
  process->blocks.visit_const(
      range, [&](const PageBlock& block, uint64_t base, size_t first, size_t last) {
        for (size_t i = first; i < last; ++i) {
          const uint8_t flags = block.flags[i];
          if ((flags & (kPageResident | kPageCold)) == 0) continue;
          PageCounts& cell = counts[(base + i * kPageSize - range.start) / kPageSize / per_cell];
          --cell.absent;
          if ((flags & kPageCold) != 0) {
            ++cell.cold;
          } else {
            ++(block.touched[i] < hot_age ? cell.hot : cell.warm);
          }
        }
      });
  return counts;
}

}  // namespace replpage
