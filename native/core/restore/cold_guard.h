// Keeps anybody from reading what is cold in a standby.
//
// A read from outside (/proc/PID/mem, process_vm_readv(2), the command line that ps shows) makes
// the kernel put its zero page wherever a page is missing, and the promoted program would read
// zeros there: nobody can tell later, but by looking through all page tables (1.2 ms for a GiB
// whose cold pages lie scattered). Over mappings that are registered with a userfaultfd of the kind
// UFFD_FEATURE_SIGBUS such a read fails instead (EIO, EFAULT).
#pragma once

#include <cstdint>
#include <span>

#include "core/base/page.h"
#include "core/restore/replica.h"
#include "core/uffd/uffd.h"

namespace replpage {

class ColdGuard {
 public:
  // Guards a private anonymous mapping, parts of which may be guarded already. Throws SysError.
  void cover(ReplicaProcess& process, PageRange mapping);

  // Writing from outside fails as reading does: puts the first of the pages that are missing and
  // guarded in place. Returns the bytes; 0: there is none at `address`. Throws SysError.
  [[nodiscard]] uint64_t put(uint64_t address, std::span<const uint8_t> pages) const;

  // From now on `next` has the mappings' missing pages. Between the two the mapping has no guard,
  // for a microsecond.
  void hand_over(PageRange mappings, const Uffd& next) const;

  // Nothing is guarded any more.
  void end() { uffd_.close(); }

 private:
  Uffd uffd_;
};

}  // namespace replpage
