// Reads pages of a process straight into a PageSink.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <cstdint>
#include <span>
#include <vector>

#include "core/base/unique_fd.h"
#include "core/memory/memory_capture.h"
#include "core/memory/page_ranges.h"
#include "core/memory/page_run.h"

namespace replpage {

class PageCopier {
 public:
  // `tid` shows the process's memory (memory_thread.h); `group_pid` is what the runs carry. Opens
  // /proc/PID/mem, which stays bound to the address space the process has now. Throws SysError.
  PageCopier(pid_t host_pid, pid_t tid, int32_t group_pid);

  // Copies the pages: zero pages become kZero runs, all others kData. `readable` is false when the
  // mapping lacks PROT_READ: /proc/PID/mem reads it all the same. Pages that cannot be read any
  // more are left out and remembered (see unreadable()). Throws SysError, also from the sink.
  void copy(std::span<const PageRange> ranges, bool readable, PageSink& sink, CopyRound& round);

  void add_absent(PageRange range, PageSink& sink, CopyRound& round) const;

  // Pages that the last copies could not read, joined; forgotten by the call.
  PageRanges take_unreadable();

  enum class Probe : uint8_t { kReadable, kUnreadable, kNoAddressSpace };
  // Tries to read a byte, whatever the protection.
  [[nodiscard]] Probe probe(uint64_t address) const;

 private:
  void copy_batch(bool readable, PageSink& sink, CopyRound& round);
  void fill(std::span<uint8_t> room, bool readable);
  size_t read_vectored(std::span<uint8_t> room, size_t done);
  void read_one_range(std::span<uint8_t> room, size_t& done);
  void emit(std::span<uint8_t> room, PageSink& sink, CopyRound& round);
  void add_run(PageRunKind kind, uint64_t address);

  pid_t tid_;
  int32_t group_pid_;
  UniqueFd memory_;
  // The batch being copied: ranges as remote vectors, and how many bytes they have in all.
  std::vector<iovec> batch_;
  size_t batch_bytes_ = 0;
  std::vector<PageRun> runs_;
  PageRanges unreadable_;
  PageRanges batch_unreadable_;
};

}  // namespace replpage
