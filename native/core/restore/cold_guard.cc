#include "core/restore/cold_guard.h"

#include <linux/userfaultfd.h>

#include "core/base/sys_error.h"
#include "core/restore/remote_uffd.h"

namespace replpage {

void ColdGuard::cover(ReplicaProcess& process, PageRange mapping) {
  if (!uffd_.valid()) {
    SyscallBatch batch;
    const size_t uffd = add_uffd(UFFD_FEATURE_SIGBUS, batch);
    const auto remote = static_cast<int>(process.run(batch).results[uffd]);
    uffd_ = Uffd(take_uffd(process, remote));
  }
  uffd_.register_missing(mapping);
}

uint64_t ColdGuard::put(uint64_t address, std::span<const uint8_t> pages) const {
  if (!uffd_.valid() || pages.size() < kPageSize) return 0;
  const FillResult result = uffd_.copy(address, pages);
  // Not registered, or unaligned: it can be written as ever.
  const bool ours = result.error != EEXIST && result.error != ENOENT && result.error != EINVAL;
  if (result.bytes == 0 && ours) {
    throw SysError("put a page", result.error, {.pid = {}, .address = address, .path = {}});
  }
  return result.bytes;
}

void ColdGuard::hand_over(PageRange mappings, const Uffd& next) const {
  if (uffd_.valid()) uffd_.unregister(mappings);
  next.register_missing(mappings);
}

}  // namespace replpage
