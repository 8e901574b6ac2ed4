// Clears accessed bits of another process with process_madvise(MADV_COLD).
//
// What else that does (mm/madvise.c, mm/swap.c): a page that only this process maps, touched or
// not, goes to the kernel's inactive list and forgets that it was referenced. Under memory pressure
// - without swap that means nothing, since pages of anonymous memory have nowhere to go and those
//   lists are not looked at;
// - with swap it would make the process the first to be swapped out, and one that was sampled all
//   along has nothing on the active list. A page that is touched again is spared at the next scan,
//   but memory of other processes would be spared without being touched. That harms the primary, so
//   nothing is cleared where anonymous memory can be moved out: swap, or slower memory to demote
//   to.
//
// A huge page is split when only a part of it is advised, so it is advised whole or not at all.
// Pages that another process maps too (after a fork) keep their bits, and so do those the kernel
// has not put on a list yet.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "core/base/unique_fd.h"
#include "core/memory/page_ranges.h"

namespace replpage {

// True when the kernel can move anonymous memory out: the advice would say what goes first.
bool anonymous_memory_can_go();

// Bytes of the largest folio below 2 MiB that anonymous memory gets here (multi-size THP, Linux
// 6.8), which advice for a part would split; a page where there are none.
uint64_t folio_bytes_max();

// What to advise for the pages in `touched` to be cleared: grown to whole folios of `folio_bytes`,
// joined over short gaps, since each range has its own TLB flush. Stays within `mapped`, the ranges
// of mappings. Both ascend. Pure.
PageRanges plan_advice(std::span<const PageRange> touched, std::span<const PageRange> mapped,
                       uint64_t folio_bytes);

class ColdAdvice {
 public:
  // By a thread that shows the process's memory (memory_thread.h). Throws SysError: ESRCH when it
  // is gone, EINVAL when its first thread is and the kernel knows no pidfds of others.
  explicit ColdAdvice(pid_t host_tid);

  enum class Outcome : uint8_t { kGiven, kRefused, kGone };
  // Advises the ranges; those that are no longer mapped, or locked by now, are skipped. The address
  // space is locked against changes of mappings, not against faults, for at most about a
  // millisecond at a time.
  Outcome give(std::span<const PageRange> ranges);

 private:
  Outcome give_some(std::span<const iovec> vectors);

  UniqueFd process_;
  std::vector<iovec> vectors_;
};

}  // namespace replpage
