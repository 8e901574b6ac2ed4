// Scans of more regions than the kernel walks in one piece.
#include "core/memory/pagemap_scan.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <string>

#include "core/base/sys_error.h"
#include "test/test.h"

namespace replpage {
namespace {

constexpr uint64_t kPages = 8192;

// Pages that are there alternate with pages that are not.
class Striped {
 public:
  Striped() {
    void* memory = ::mmap(nullptr, kPages * kPageSize, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    ::madvise(memory, kPages * kPageSize, MADV_NOHUGEPAGE);
    start = reinterpret_cast<uint64_t>(memory);
  }
  ~Striped() { ::munmap(reinterpret_cast<void*>(start), kPages * kPageSize); }
  Striped(const Striped&) = delete;
  Striped& operator=(const Striped&) = delete;
  void touch(uint64_t page) const {
    *reinterpret_cast<volatile uint8_t*>(start + page * kPageSize) = 1;
  }
  [[nodiscard]] PageRange range() const { return {start, start + kPages * kPageSize}; }
  uint64_t start = 0;
};

PagemapScan scan_of_ourselves() {
  try {
    PagemapScan scan(::getpid(), ::getpid());
    scan.scan({0x1000, 0x2000}, {.any_of = kPagePresent}, [](const PageRegion&) {});
    return scan;
  } catch (const SysError& error) {
    throw testing::Skipped(std::string("no PAGEMAP_SCAN: ") + error.what());
  }
}

// Sets of ranges are made from these lists, and take a list that does not ascend for another one:
// written pages were lost so.
TEST(a_scan_reports_each_region_once_and_ascending) {
  PagemapScan scan = scan_of_ourselves();
  for (const uint64_t regions : {1u, 511u, 512u, 513u, 700u, 1024u, 1025u, 4000u}) {
    const Striped memory;
    for (uint64_t i = 0; i < regions; ++i) memory.touch(2 * i);
    uint64_t last_end = 0;
    uint64_t seen = 0;
    scan.scan(memory.range(), {.any_of = kPagePresent}, [&](const PageRegion& region) {
      CHECK(region.start >= last_end);
      last_end = region.end;
      ++seen;
    });
    CHECK_EQUAL(seen, regions);
    for (const uint64_t limit : {uint64_t{1}, regions / 2 + 1, regions, regions + 5}) {
      uint64_t pages = 0;
      last_end = 0;
      const auto count = [&](const PageRegion& region) {
        CHECK(region.start >= last_end);
        last_end = region.end;
        pages += (region.end - region.start) / kPageSize;
      };
      scan.scan(memory.range(), {.any_of = kPagePresent}, count, limit);
      CHECK_EQUAL(pages, std::min(limit, regions));
    }
  }
}

}  // namespace
}  // namespace replpage
