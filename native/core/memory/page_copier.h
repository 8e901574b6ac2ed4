// Copies pages of something into a PageSink: zero pages are found, neighbours joined into runs.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/memory/memory_capture.h"
#include "core/memory/page_ranges.h"
#include "core/memory/page_run.h"

namespace replpage {

// Where pages come from.
class PageReader {
 public:
  virtual ~PageReader() = default;
  // Fills `room` with the pages of `ranges`, one after the other; both have the same length in
  // bytes. Appends to `unreadable` (ascending in each call) what cannot be read. Throws SysError.
  virtual void read(std::span<const PageRange> ranges, std::span<uint8_t> room,
                    PageRanges& unreadable) = 0;
};

class PageCopier {
 public:
  // Runs carry this process (of the group's PID namespace), or 0 and the shared object.
  explicit PageCopier(int32_t group_pid, uint32_t object = 0)
      : group_pid_(group_pid), object_(object) {}

  // Zero pages become kZero runs, all others kData; pages that cannot be read are left out and
  // remembered. Throws what the reader and the sink throw.
  void copy(std::span<const PageRange> ranges, PageReader& reader, PageSink& sink,
            CopyRound& round);

  void add_absent(PageRange range, PageSink& sink, CopyRound& round) const;

  // Pages that the last copies could not read; forgotten by the call.
  PageRanges take_unreadable();

 private:
  void copy_batch(PageReader& reader, PageSink& sink, CopyRound& round);
  void emit(std::span<uint8_t> room, PageSink& sink, CopyRound& round);
  void add_run(PageRunKind kind, uint64_t address);

  int32_t group_pid_;
  uint32_t object_;
  // The batch being copied, and how many bytes it has.
  PageRanges batch_;
  uint64_t batch_bytes_ = 0;
  PageRanges batch_unreadable_;
  std::vector<PageRun> runs_;
  PageRanges unreadable_;
};

}  // namespace replpage
