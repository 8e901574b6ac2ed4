// A userfaultfd driven from outside the process whose memory it guards (userfaultfd(2)).
#pragma once

#include <linux/userfaultfd.h>

#include <cstdint>
#include <span>

#include "core/base/page.h"
#include "core/base/unique_fd.h"

namespace replpage {

// What a process that runs with missing pages needs: without these events a forked child, mremap or
// MADV_DONTNEED would read zeros or old content.
inline constexpr uint64_t kLazyFeatures = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP |
                                          UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP;

struct FillResult {
  uint64_t bytes = 0;  // filled from the start of the range
  int error = 0;       // why it stopped: EEXIST present already, EAGAIN an event waits to be read,
                       // ENOENT not registered (any more), ESRCH the process is gone
};

class Uffd {
 public:
  Uffd() = default;
  explicit Uffd(UniqueFd fd) : fd_(std::move(fd)) {}

  // UFFDIO_API, once per userfaultfd. Throws SysError (EINVAL: a feature is missing, EPERM:
  // EVENT_FORK needs CAP_SYS_PTRACE).
  void enable(uint64_t features) const;
  // MISSING faults of the range come here from now on. Throws SysError.
  void register_missing(PageRange range) const;
  void unregister(PageRange range) const;

  // Whole pages. Never throws for what FillResult lists. Faulting threads are woken.
  [[nodiscard]] FillResult copy(uint64_t address, std::span<const uint8_t> content) const;
  [[nodiscard]] FillResult zero(PageRange range) const;
  void wake(PageRange range) const;
  // Whoever touches a page of the range gets SIGBUS, now and later. Where can_poison().
  [[nodiscard]] FillResult poison(PageRange range) const;
  // Linux 6.6 and later.
  static bool can_poison();

  // Reads as many messages as are there; 0: none. The descriptor must be non-blocking.
  [[nodiscard]] size_t read(std::span<uffd_msg> messages) const;

  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] bool valid() const { return fd_.valid(); }
  void close() { fd_.reset(); }

 private:
  UniqueFd fd_;
};

}  // namespace replpage
