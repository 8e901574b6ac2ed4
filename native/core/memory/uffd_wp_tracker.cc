#include "core/memory/uffd_wp_tracker.h"

#include <algorithm>
#include <utility>

#include "core/base/sys_error.h"
#include "core/memory/swap_areas.h"

namespace replpage {
namespace {

constexpr uint64_t kHasContent = kPagePresent | kPageSwapped;

// Written private pages that hold content. The shared zero page is the same as a hole.
constexpr PageQuery written_query(bool arm) {
  return {.inverted = kPageZero,
          .required = kPageWritten | kPageZero,
          .any_of = kHasContent,
          .returned = 0,
          .write_protect = arm};
}

// Neighbouring candidates are asked for in one call when less than this lies between them.
constexpr uint64_t kCandidateGap = 64 * kPageSize;

PageRanges without_small_gaps(const PageRanges& ranges) {
  PageRanges joined;
  for (const PageRange& range : ranges) {
    if (!joined.empty() && range.start - joined.back().end <= kCandidateGap) {
      joined.back().end = range.end;
    } else {
      joined.push_back(range);
    }
  }
  return joined;
}

PageRanges ranges_of(std::span<const MappingImage> mappings) {
  PageRanges ranges;
  for (const MappingImage& mapping : mappings) append_range(ranges, mapping.range());
  return ranges;
}

// Holes, and the shared zero page. Swapped pages match too and must be told by their category.
constexpr PageQuery kHoles = {.inverted = kPagePresent,
                              .required = 0,
                              .any_of = kPagePresent | kPageZero,
                              .returned = kPageSwapped,
                              .write_protect = false};

// Written pages, discarded ones among them. The kernel has a short cut for just this question.
constexpr PageQuery dense_query(bool arm) {
  return {.inverted = 0,
          .required = kPageWritten,
          .any_of = 0,
          .returned = kPageWritten,
          .write_protect = arm};
}

// Memory counts as dense in blocks of this size (aligned): what one page table maps.
constexpr uint64_t kDenseBlockBytes = 2u << 20;
constexpr uint64_t kDenseHoleBytes = kDenseBlockBytes / 16;

// Blocks that lie wholly in one of the ranges, but for holes of little size in all.
PageRanges full_blocks(std::span<const PageRange> present) {
  PageRanges blocks;
  uint64_t block = UINT64_MAX;
  uint64_t bytes = 0;
  const auto finish = [&] {
    if (bytes >= kDenseBlockBytes - kDenseHoleBytes) {
      append_range(blocks, {block, block + kDenseBlockBytes});
    }
  };
  for (const PageRange& range : present) {
    for (uint64_t at = range.start; at < range.end;) {
      const uint64_t home = at & ~(kDenseBlockBytes - 1);
      const uint64_t end = std::min(range.end, home + kDenseBlockBytes);
      if (home != block) {
        finish();
        block = home;
        bytes = 0;
      }
      bytes += end - at;
      at = end;
    }
  }
  finish();
  return blocks;
}

PageRanges blocks_touching(std::span<const PageRange> ranges) {
  PageRanges blocks;
  for (const PageRange& range : ranges) {
    append_range(blocks, {range.start & ~(kDenseBlockBytes - 1),
                          (range.end + kDenseBlockBytes - 1) & ~(kDenseBlockBytes - 1)});
  }
  return blocks;
}

// Joins ranges over gaps in which no dense memory lies, so that few scans cover them.
PageRanges hulls_between(std::span<const PageRange> sparse, std::span<const PageRange> dense) {
  PageRanges hulls;
  for (const PageRange& range : sparse) {
    while (!dense.empty() && !hulls.empty() && dense.front().end <= hulls.back().start) {
      dense = dense.subspan(1);
    }
    const bool between = !hulls.empty() && !dense.empty() && dense.front().start < range.start &&
                         dense.front().start >= hulls.back().end;
    if (hulls.empty() || between) {
      hulls.push_back(range);
      if (between) dense = dense.subspan(1);
    } else {
      hulls.back().end = range.end;
    }
  }
  return hulls;
}

void append_ranges(PageRanges& ranges, std::span<const PageRange> more) {
  for (const PageRange& range : more) append_range(ranges, range);
}

}  // namespace

UffdWpTracker::UffdWpTracker(pid_t host_pid, pid_t tid, const MemoryCapture::Injector& injector)
    : pid_(host_pid), pages_(host_pid, tid), uffd_(host_pid, injector) {}

UffdWpTracker::UffdWpTracker(pid_t host_pid, pid_t tid)
    : pid_(host_pid), pages_(host_pid, tid), tracks_(false) {}

template <class Visit>
void UffdWpTracker::for_each_group(std::span<const MappingImage> mappings, Visit&& visit) {
  for (size_t first = 0; first < mappings.size();) {
    const MappingKind kind = mappings[first].kind;
    if (!holds_private_pages(kind)) {
      ++first;
      continue;
    }
    const bool file_backed = is_file_backed_private(kind);
    size_t last = first + 1;
    while (last < mappings.size() && holds_private_pages(mappings[last].kind) &&
           is_file_backed_private(mappings[last].kind) == file_backed) {
      ++last;
    }
    visit(Group{mappings.subspan(first, last - first), file_backed});
    first = last;
  }
}

void UffdWpTracker::track(std::span<const MappingImage> mappings) {
  never_written_.clear();
  // Before the first time nothing is ours: what shows as tracked is by a userfaultfd of somebody
  // else, and registering it again says so (EBUSY).
  const bool first = !std::exchange(tracked_before_, true);
  for_each_group(mappings, [&](const Group& group) {
    const PageRanges untracked = first ? PageRanges{group.hull()} : untracked_in(group.hull());
    if (untracked.empty()) return;
    const PageRanges mapped = ranges_of(group.mappings);
    for (const PageRange& range : intersect_ranges(mapped, untracked)) register_private(range);
  });
  for (const MappingImage& mapping : mappings) {
    if (mapping.kind != MappingKind::kSharedObject) continue;
    for (const PageRange& range : untracked_in(mapping.range())) register_shared(range);
  }
}

void UffdWpTracker::look(std::span<const MappingImage> mappings, MemoryView& view) {
  view.appeared = std::exchange(appeared_, {});
  dense_ = subtract_ranges(dense_, view.appeared);
  PageRanges copied;
  for_each_group(mappings, [&](const Group& group) {
    if (!group.file_backed) {
      look_anonymous(group, true, view);
      return;
    }
    const size_t before = view.present.size();
    look_file_backed(group, true, view);
    for (size_t i = before; i < view.present.size(); ++i) append_range(copied, view.present[i]);
  });
  copied_file_pages_ = std::move(copied);
  has_looked_ = true;
  choose_dense(mappings, view);
}

// Ranges that are nearly full are looked at in one scan instead of two from the next time on. Their
// few holes are armed then, which fills at most the page tables that are there.
void UffdWpTracker::choose_dense(std::span<const MappingImage> mappings, const MemoryView& view) {
  if (!WriteProtectUffd::reports_discards()) return;
  dense_ = subtract_ranges(dense_, blocks_touching(view.absent));
  PageRanges anonymous;
  for (const MappingImage& mapping : mappings) {
    if (mapping.kind == MappingKind::kAnonymous) append_range(anonymous, mapping.range());
  }
  dense_ = intersect_ranges(unite_ranges(dense_, full_blocks(view.present)), anonymous);
}

void UffdWpTracker::peek(std::span<const MappingImage> mappings, MemoryView& view) {
  // What was put in the place of dense memory proves nothing by what is not written.
  if (!dense_.empty()) {
    dense_ = subtract_ranges(dense_, untracked_in({dense_.front().start, dense_.back().end}));
  }
  for_each_group(mappings, [&](const Group& group) {
    if (group.file_backed) {
      look_file_backed(group, false, view);
    } else {
      look_anonymous(group, false, view);
    }
  });
}

uint64_t UffdWpTracker::count(std::span<const MappingImage> mappings, uint64_t limit) {
  uint64_t pages = 0;
  for_each_group(mappings, [&](const Group& group) {
    if (pages >= limit) return;
    PageQuery query = written_query(false);
    if (group.file_backed) {
      query.inverted |= kPageFile;
      query.required |= kPageFile;
    }
    pages_.scan(
        group.hull(), query,
        [&pages](const PageRegion& region) { pages += (region.end - region.start) / kPageSize; },
        limit - pages);
  });
  for (const MappingImage& mapping : mappings) {
    if (mapping.kind == MappingKind::kSharedObject && pages < limit) {
      pages += count_shared(mapping.range(), limit - pages);
    }
  }
  return std::min(pages, limit);
}

// Pages that are mapped and written; those that were unmapped since show at the look only.
uint64_t UffdWpTracker::count_shared(PageRange mapping, uint64_t limit) {
  constexpr uint64_t kSeen = kPageWritten | kPagePresent | kPageTracked;
  uint64_t pages = 0;
  pages_.scan(
      mapping,
      {.inverted = 0, .required = kSeen, .any_of = 0, .returned = 0, .write_protect = false},
      [&pages](const PageRegion& region) { pages += (region.end - region.start) / kPageSize; },
      limit);
  return pages;
}

PageRanges UffdWpTracker::untracked_in(PageRange hull) {
  PageRanges untracked;
  pages_.collect(hull, {.inverted = kPageTracked, .required = kPageTracked}, untracked);
  return untracked;
}

void UffdWpTracker::register_private(PageRange range) {
  const int error = uffd_.try_register(range);
  if (error != 0) throw SysError("track writes", error, at_address(pid_, range.start));
  appeared_ = unite_ranges(appeared_, {&range, 1});
}

void UffdWpTracker::register_shared(PageRange range) {
  const int error = uffd_.try_register(range);
  if (error == EPERM) {
    append_range(never_written_, range);
  } else if (error != 0) {
    throw SysError("track writes", error, at_address(pid_, range.start));
  } else {
    appeared_shared_ = unite_ranges(appeared_shared_, {&range, 1});
  }
}

// A look leaves out what is not tracked yet: its pages would never show as written again. A peek is
// the last one anyway.
PageRanges UffdWpTracker::looked_at(const Group& group, bool arm) {
  PageRanges mapped = ranges_of(group.mappings);
  return arm ? subtract_ranges(mapped, untracked_in(group.hull())) : mapped;
}

void UffdWpTracker::look_anonymous(const Group& group, bool arm, MemoryView& view) {
  const PageRanges mapped = looked_at(group, arm);
  const PageRanges dense = intersect_ranges(dense_, mapped);
  const PageRanges sparse = subtract_ranges(mapped, dense);
  PageRanges written;
  PageRanges present;
  for (const PageRange& hull : hulls_between(sparse, dense)) {
    pages_.collect(hull, written_query(arm), written);
    append_ranges(present, present_in(hull, sparse));
  }
  if (!view.appeared.empty()) {
    written = unite_ranges(written, intersect_ranges(view.appeared, present));
  }
  written = intersect_ranges(written, sparse);
  PageRanges absent;
  if (!dense.empty()) written = unite_ranges(written, look_dense(dense, arm, absent));
  append_ranges(view.absent, absent);
  append_ranges(view.written, written);
  append_ranges(view.present, unite_ranges(present, subtract_ranges(dense, absent)));
}

// Asks for the opposite, since the cost of a scan is in the pages that match.
PageRanges UffdWpTracker::present_in(PageRange hull, std::span<const PageRange> mapped) {
  PageRanges holes;
  pages_.scan(hull, kHoles, [&holes](const PageRegion& region) {
    if ((region.categories & kPageSwapped) == 0) append_range(holes, {region.start, region.end});
  });
  return subtract_ranges(intersect_ranges(mapped, {&hull, 1}), holes);
}

// One scan finds writes and discards alike. Short runs are left in doubt: a discarded page among
// them is read as zero, which means the same. So is a hole that was armed: its marker looks like a
// page that was swapped out, or that is being migrated. At the last look, which a death waits for,
// so is everything.
PageRanges UffdWpTracker::look_dense(std::span<const PageRange> dense, bool arm,
                                     PageRanges& absent) {
  constexpr uint64_t kDoubtBytes = 16 * kPageSize;
  PageRanges written;
  for (const PageRange& range : dense) {
    if (arm) {
      pages_.collect(range, dense_query(true), written);
    } else {
      peek_dense(range, written);
    }
  }
  if (!arm) return written;
  for (const PageRange& range : written) {
    if (range.bytes() < kDoubtBytes) continue;
    pages_.scan(range, kHoles, [&absent](const PageRegion& region) {
      if ((region.categories & kPageSwapped) == 0) append_range(absent, {region.start, region.end});
    });
  }
  return subtract_ranges(written, absent);
}

// A death is not kept waiting for the details of a part of which much is dirty: the rest of it
// counts as written.
// Scans go on over what is clean, since many short ones cost several times as much.
void UffdWpTracker::peek_dense(PageRange range, PageRanges& written) {
  constexpr uint64_t kPartBytes = 2u << 20;
  constexpr uint64_t kPartPagesMax = kPartBytes / kPageSize / 8;
  for (uint64_t at = range.start; at < range.end;) {
    uint64_t pages = 0;
    uint64_t first = 0;
    pages_.scan(
        {at, range.end}, dense_query(false),
        [&](const PageRegion& region) {
          if (pages == 0) first = region.start;
          append_range(written, {region.start, region.end});
          pages += (region.end - region.start) / kPageSize;
          at = region.end;
        },
        kPartPagesMax);
    if (pages < kPartPagesMax) return;
    if (at - first > kPartBytes) continue;
    const uint64_t end = std::min(range.end, (at + kPartBytes - 1) & ~(kPartBytes - 1));
    if (at < end) append_range(written, {at, end});
    at = end;
  }
}

// Whether a page is the file's costs a look at its struct page (13 ms a GiB), so it is asked only
// for pages that were written or that were copies at the last look.
void UffdWpTracker::look_file_backed(const Group& group, bool arm, MemoryView& view) {
  const PageRanges mapped = looked_at(group, arm);
  PageRanges written;
  // Without a userfaultfd of its own it may still share memory that another's has armed (vfork).
  pages_.collect(group.hull(),
                 {.inverted = 0,
                  .required = tracks_ ? uint64_t{kPageWritten} : 0,
                  .any_of = kHasContent,
                  .returned = 0,
                  .write_protect = arm},
                 written);
  if (!view.appeared.empty()) {
    written = unite_ranges(written, intersect_ranges(view.appeared, mapped));
  }
  // The first look knows of no copies. Its process may share the address space of one that is
  // tracked already (vfork), whose looks have armed copies long ago.
  const PageRanges copies = has_looked_ ? intersect_ranges(copied_file_pages_, mapped) : mapped;
  PageRanges present;
  PageRanges swapped;
  for (const PageRange& range : without_small_gaps(unite_ranges(written, copies))) {
    pages_.scan(range,
                {.inverted = kPageFile,
                 .required = kPageFile,
                 .any_of = kHasContent,
                 .returned = kPageSwapped,
                 .write_protect = false},
                [&](const PageRegion& region) {
                  append_range(present, {region.start, region.end});
                  if ((region.categories & kPageSwapped) != 0) {
                    append_range(swapped, {region.start, region.end});
                  }
                });
  }
  present = intersect_ranges(present, mapped);
  // A discarded copy leaves a marker that looks like a swapped-out page. Reading it tells, and
  // brings the file's page in, so that the next look knows.
  const PageRanges doubtful = intersect_ranges(swapped, copies);
  if (!has_looked_) written = mapped;
  append_ranges(view.written, intersect_ranges(unite_ranges(written, doubtful), present));
  append_ranges(view.present, present);
}

PageRanges UffdWpTracker::look_shared(const MappingImage& mapping,
                                      std::span<const PageRange> parts) {
  const PageRanges fresh = fresh_in(mapping.range());
  // A page that is not mapped may have been written and unmapped again (MADV_DONTNEED, swap), so
  // holes are armed too: a marker alone proves that nothing happened.
  constexpr PageQuery kNotArmed = {.inverted = kPagePresent,
                                   .required = 0,
                                   .any_of = kPageWritten | kPagePresent,
                                   .returned = kPageWritten | kPageSwapped,
                                   .write_protect = true};
  PageRanges written;
  for (const PageRange& part : parts) {
    pages_.scan(part, kNotArmed, [&written](const PageRegion& region) {
      const bool marker = (region.categories & (kPageWritten | kPageSwapped)) == kPageSwapped;
      if (!marker) append_range(written, {region.start, region.end});
    });
  }
  if (fresh.empty()) return written;
  if (swap_in_use()) return unite_ranges(written, intersect_ranges(fresh, parts));
  // Nothing was armed before. What a new process wrote is mapped, unless it has been swapped out;
  // counting all its holes as well would copy the whole object at every fork.
  PageRanges touched;
  for (const PageRange& range : fresh) {
    pages_.collect(range, {.any_of = kPagePresent}, touched);
  }
  return unite_ranges(subtract_ranges(written, fresh), intersect_ranges(touched, parts));
}

// Parts of a shared mapping that nothing is known of yet: not looked at before, or not tracked.
PageRanges UffdWpTracker::fresh_in(PageRange mapping) {
  const PageRanges known = intersect_ranges(appeared_shared_, {&mapping, 1});
  appeared_shared_ = subtract_ranges(appeared_shared_, known);
  return unite_ranges(known, subtract_ranges(untracked_in(mapping), never_written_));
}

}  // namespace replpage
