// Recognises pages that show one of the kernel's own zero pages, which a program gets by reading
// memory that it has not written, or has discarded. PAGEMAP_SCAN tells them (PAGE_IS_PFNZERO); the
// entries of /proc/PID/pagemap only give the number of the page frame.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "core/base/unique_fd.h"

namespace replpage {

class ZeroFrames {
 public:
  // The machine's; any thread. Null where frame numbers are hidden (without CAP_SYS_ADMIN), or the
  // kernel does not tell what frames are (/proc/kpageflags).
  static const ZeroFrames* instance();

  // Makes the entries (of the page at `start` and those after it) that show a zero page 0, as those
  // of pages that are not there. Throws SysError.
  void leave_out(std::span<uint64_t> entries, uint64_t start) const;

 private:
  ZeroFrames(UniqueFd flags, uint64_t frame) : flags_(std::move(flags)), frame_(frame) {}
  static std::optional<ZeroFrames> find();
  [[nodiscard]] bool is_zero(uint64_t frame) const;

  UniqueFd flags_;
  uint64_t frame_;  // of the small zero page, which never changes
};

}  // namespace replpage
