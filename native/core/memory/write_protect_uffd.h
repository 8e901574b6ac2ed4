// A userfaultfd of another process, set to asynchronous write-protection (WP_ASYNC, Linux 6.7): the
// kernel resolves write faults by itself and keeps a bit in the page tables.
#pragma once

#include <sys/types.h>

#include "core/base/unique_fd.h"
#include "core/memory/memory_capture.h"
#include "core/memory/page_ranges.h"

namespace replpage {

class WriteProtectUffd {
 public:
  // Whether this kernel has it, with PAGEMAP_SCAN; tried on pages of our own, once.
  static bool supported();
  // Whether a scan for written pages alone reports discarded pages too, also where their whole page
  // table is gone; tried once.
  static bool reports_discards();

  // None: nothing can be registered.
  WriteProtectUffd() = default;
  // Makes one in the process, which must be stopped, and takes it out again. Throws SysError: ESRCH
  // when the process is gone, EBUSY when it has a userfaultfd of its own.
  WriteProtectUffd(pid_t pid, const MemoryCapture::Injector& injector);

  // 0 or an errno value: EBUSY another userfaultfd has the mapping, EPERM it can never be written,
  // EINVAL nothing is mapped there or it cannot be tracked.
  [[nodiscard]] int try_register(PageRange range) const;

 private:
  UniqueFd fd_;
};

}  // namespace replpage
