// Memory of a promoted process that is read from elsewhere when it is touched.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "core/base/page.h"
#include "core/restore/address_gaps.h"
#include "core/restore/stub_process.h"
#include "core/uffd/uffd.h"

namespace replpage {

class LazyMemory {
 public:
  explicit LazyMemory(StubProcess& process) : process_(process) {}

  // Drops what the process has in the ranges (ascending, within private anonymous mappings), and
  // registers their mappings, and all with cold pages, MISSING with the userfaultfd returned; what
  // guarded them ends. Throws SysError.
  Uffd prepare(std::span<const PageRange> ranges);

  // Old content that was only moved away.
  [[nodiscard]] const std::vector<PageRange>& moved() const { return moved_; }

 private:
  [[nodiscard]] std::vector<PageRange> missing(std::span<const PageRange> ranges) const;
  void drop(PageRange range, AddressGaps& gaps, SyscallBatch& batch);

  StubProcess& process_;
  std::vector<PageRange> moved_;
};

}  // namespace replpage
