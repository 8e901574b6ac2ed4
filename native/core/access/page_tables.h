// Page tables of other processes, read from the kernel's memory without any lock: while a process
// runs, tables may be freed and used for something else as they are read. All that is found is a
// hint, and what cannot be read or lies outside the machine's memory is left out.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/access/kernel_pages.h"
#include "core/access/table_entries.h"
#include "core/image/kernel_memory.h"
#include "core/memory/page_ranges.h"

namespace replpage {

// Takes what a walk finds. Ascends.
class TableVisitor {
 public:
  virtual ~TableVisitor() = default;
  // A table of level 1 that maps [base, base + 2 MiB); the entries are gone after the call.
  virtual void table(uint64_t base, std::span<const uint64_t> entries) = 0;
  // A huge page at `base`.
  virtual void huge(uint64_t base, uint64_t entry) = 0;
  // After some tables, with no lock held: there may be more.
  virtual void pause() = 0;
};

class PageTables {
 public:
  // The machine's, made at the first call (about 100 ms). Null where they cannot be read: see
  // refusal(). Any thread.
  static PageTables* instance();
  // Why there is no instance; empty when there is.
  static const std::string& refusal();

  // Kernel address of the top table of a thread's address space, nullopt when it has none.
  // Throws SysError.
  std::optional<uint64_t> root(pid_t host_tid);

  // Visits the tables that map some of `ranges` (ascending), at about 0.4 ms a GiB. Throws
  // SysError.
  void walk(uint64_t root, std::span<const PageRange> ranges, TableVisitor& visitor);

  [[nodiscard]] int levels() const { return levels_; }
  // Physical address of the zero page.
  [[nodiscard]] uint64_t zero_page() const { return zero_page_; }

 private:
  struct Table {
    uint64_t address = 0;  // in the kernel
    uint64_t base = 0;     // what its first entry maps
    uint64_t huge = 0;     // no table: this entry of level 2 is a huge page
  };
  struct Source {
    PageTables* tables = nullptr;
    std::string refusal;
  };
  explicit PageTables(const BtfTypes& types);
  static const Source& source();
  void calibrate();
  bool find_base(uint64_t root, uint64_t frame, std::span<const uint64_t> content);
  bool shows(uint64_t root, uint64_t address, uint64_t frame);
  void read_memory_end();
  void descend(std::span<const Table> tables, int level, std::span<const PageRange> ranges,
               TableVisitor& visitor);
  void expand(const Table& table, int level, std::span<const uint64_t> entries,
              std::span<const PageRange> ranges, std::vector<Table>& below);

  std::mutex mutex_;  // of the areas that the programs share with us
  KernelMemory memory_;
  KernelPages pages_;
  uint32_t task_memory_ = 0, memory_root_ = 0;  // offsets: task_struct.mm, mm_struct.pgd
  int levels_ = 4;
  uint64_t base_ = 0;        // where the kernel has physical address 0: the direct map
  uint64_t memory_end_ = 0;  // physical
  bool memory_grew_ = false;
  uint64_t zero_page_ = 1;
};

}  // namespace replpage
