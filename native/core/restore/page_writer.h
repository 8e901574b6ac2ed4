// Writes pages into one replica process.
#pragma once

#include <sys/uio.h>

#include <span>
#include <vector>

#include "core/memory/page_run.h"
#include "core/restore/replica.h"
#include "core/restore/stub_process.h"

namespace replpage {

class PageWriter {
 public:
  PageWriter(StubProcess& process, StagedPages& staged) : process_(process), staged_(staged) {}

  // Applies runs of this process that ascend and do not overlap. What lies outside its mappings, or
  // in shared ones, is left out: it was unmapped or replaced later in the epoch. Throws SysError.
  void write(std::span<const PageRun> runs);

 private:
  using Region = AddressSpace::Region;

  void piece(const PageRun& run, uint64_t start, uint64_t end, Region& region);
  void forbid_huge_pages();
  void data(uint64_t start, std::span<const uint8_t> bytes, const Region& region);
  void put(uint64_t start, std::span<const uint8_t> bytes);
  void zeros(uint64_t start, uint64_t end, const Region& region);
  void discard(uint64_t start, uint64_t end, const Region& region);
  void flush_data();
  void add_discard();
  void flush_discards();

  StubProcess& process_;
  StagedPages& staged_;
  std::vector<iovec> local_, remote_;
  struct Discard {
    PageRange range;
    int advice = 0;
  };
  Discard discard_;  // the last one, which may still grow
  SyscallBatch discards_;
};

}  // namespace replpage
