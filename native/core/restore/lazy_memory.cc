#include "core/restore/lazy_memory.h"

#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <algorithm>

#include "core/base/sys_error.h"
#include "core/memory/page_ranges.h"
#include "core/restore/address_gaps.h"
#include "core/restore/remote_uffd.h"

namespace replpage {
namespace {

// Up to here it is cheaper to free pages at once (about 0.1 us each) than to move them.
constexpr uint64_t kDropBytesMax = 256 * 1024;
constexpr uint64_t kHugeBytes = 2u << 20;
constexpr int kMremapDontUnmap = 4;  // MREMAP_DONTUNMAP, since Linux 5.7
constexpr int kDontneedLocked = 24;  // MADV_DONTNEED_LOCKED

}  // namespace

// Page tables move whole where both addresses are congruent, which is what makes it cheap.
void LazyMemory::drop(PageRange range, AddressGaps& gaps, SyscallBatch& batch) {
  for (const auto& region : process_.memory().regions()) {
    const uint64_t start = std::max(range.start, region.image.start);
    const uint64_t end = std::min(range.end, region.image.end);
    if (start >= end) continue;
    if (region.image.kind != MappingKind::kAnonymous) {
      throw SysError("serve memory of another kind than anonymous later", ENOTSUP,
                     at_address(process_.pid(), start));
    }
    if (!region.written) continue;
    if (end - start <= kDropBytesMax) {
      const int advice = (region.image.flags & kLocked) != 0 ? kDontneedLocked : MADV_DONTNEED;
      batch.add("drop lazy memory", SYS_madvise, {start, end - start, advice});
      continue;
    }
    const auto away = gaps.find(end - start, kHugeBytes, start);
    if (!away) throw SysError("move lazy memory away", ENOMEM, at_address(process_.pid(), start));
    const PageRange moved{*away, *away + (end - start)};
    gaps.occupy(moved);
    batch.add("move lazy memory away", SYS_mremap,
              {start, end - start, end - start, MREMAP_MAYMOVE | MREMAP_FIXED | kMremapDontUnmap,
               moved.start});
    // A child that the program forks meanwhile needs none of it.
    batch.add("madvise", SYS_madvise, {moved.start, moved.bytes(), MADV_DONTFORK});
    moved_.push_back(moved);
  }
}

// Whole mappings: parts would split them, and the program could not mremap(2) the whole any more
// until all is there. Stacks alone, which nobody moves, are registered in parts.
std::vector<PageRange> LazyMemory::missing(std::span<const PageRange> ranges) const {
  const LazyRanges& cold = process_.memory().cold();
  PageRanges mappings;
  auto range = ranges.begin();
  for (const auto& region : process_.memory().regions()) {
    const MappingImage& mapping = region.image;
    if (mapping.kind != MappingKind::kAnonymous) continue;
    while (range != ranges.end() && range->end <= mapping.start) ++range;
    const bool passing = range != ranges.end() && range->start < mapping.end;
    const auto piece = cold.empty() ? std::nullopt : cold.first_from(mapping.start);
    const bool is_cold = piece && piece->start < mapping.end;
    if (is_cold || (passing && (mapping.flags & kGrowsDown) == 0)) {
      append_range(mappings, mapping.range());
    }
  }
  return unite_ranges(ranges, mappings);
}

Uffd LazyMemory::prepare(std::span<const PageRange> ranges) {
  AddressGaps gaps;
  gaps.occupy(process_.stub_range());
  for (const auto& region : process_.memory().regions()) gaps.occupy(region.image.range());
  for (const auto& special : process_.memory().special()) gaps.occupy(special.range());
  SyscallBatch batch;
  // khugepaged must not fill what is dropped before it is registered (PageWriter).
  batch.add("huge pages", SYS_prctl, {PR_SET_THP_DISABLE, 1, 0, 0, 0});
  for (const PageRange& range : ranges) drop(range, gaps, batch);
  const size_t uffd = add_uffd(kLazyFeatures, batch);
  const auto remote = static_cast<int>(process_.run(batch).results[uffd]);
  Uffd served(take_uffd(process_, remote));
  ColdGuard& guard = process_.memory().guard();
  for (const PageRange& range : missing(ranges)) guard.hand_over(range, served);
  guard.end();
  return served;
}

}  // namespace replpage
