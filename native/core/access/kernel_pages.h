// Whole pages of kernel memory, many in one system call. KernelMemory reads small structures and
// the task of a pid; page tables are pages of 512 entries, 512 of them for each GiB.
#pragma once

#include <cstdint>
#include <span>

#include "core/base/page.h"
#include "core/base/unique_fd.h"
#include "core/image/bpf.h"

namespace replpage {

class KernelPages {
 public:
  static constexpr size_t kPagesMax = 64;  // a quarter of a MiB stays in the cache
  static constexpr size_t kWords = kPageSize / sizeof(uint64_t);

  // Throws SysError when the kernel does not allow or know such programs (CAP_BPF, CAP_PERFMON,
  // lockdown).
  KernelPages();
  KernelPages(const KernelPages&) = delete;
  KernelPages& operator=(const KernelPages&) = delete;

  // Reads the page at each address (at most kPagesMax of them) in one system call: about 0.25 us
  // each. Throws SysError.
  void read(std::span<const uint64_t> addresses);
  // What the last read found at the address with that number, valid until the next one; empty when
  // nothing is mapped there.
  [[nodiscard]] std::span<const uint64_t> page(size_t number) const;

 private:
  struct Area;
  [[nodiscard]] Area& area() const { return *static_cast<Area*>(area_.data()); }

  bpf::SharedArea area_;
  UniqueFd program_;
};

}  // namespace replpage
