// Pages of one epoch on their way from the primary to the replica.
#pragma once

#include <cstdint>
#include <span>

#include "core/base/archive.h"

namespace replpage {

enum class PageRunKind : uint8_t {
  kData = 1,    // content at data_offset in the staging area
  kZero = 2,    // present and all zero
  kAbsent = 3,  // what the mapping has underneath: nothing (zero), or the mapped file's page
  kCold = 4,    // unchanged since the last epoch, and in the page store at location data_offset
};

struct PageRun {
  int32_t pid = 0;      // process in the group's own PID namespace; 0: a shared object
  uint32_t object = 0;  // SharedObjectImage::id when pid is 0
  PageRunKind kind = PageRunKind::kData;
  uint64_t address = 0;  // page aligned; offset in the object when pid is 0
  uint64_t length = 0;   // bytes, whole pages
  uint64_t data_offset = 0;
  template <class A>
  void visit(A& a) {
    a(pid, object, kind, address, length, data_offset);
  }
};

// Where a capture puts what it copies. The later of two runs for one page wins.
class PageSink {
 public:
  virtual ~PageSink() = default;
  // Room for `bytes` contiguous bytes (a multiple of the page size, at most chunk_bytes_max());
  // the span stays valid until the next call. Throws SysError(ENOSPC) when staging and spill are
  // full.
  virtual std::span<uint8_t> reserve(uint64_t bytes) = 0;
  [[nodiscard]] virtual uint64_t chunk_bytes_max() const = 0;
  // Keeps the first `used` bytes of the last reservation; returns their data_offset.
  virtual uint64_t keep(uint64_t used) = 0;
  virtual void add(const PageRun& run) = 0;
};

}  // namespace replpage
