#include "core/access/page_tables.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>
#include <cstring>
#include <random>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/image/btf_types.h"
#include "core/memory/pagemap_entries.h"

namespace replpage {
namespace {

// Where the direct map lies at the lowest (Documentation/arch/x86/x86_64/mm.rst); address space
// randomisation moves it up in steps.
constexpr uint64_t kLowestBase4 = 0xFFFF'8880'0000'0000, kLowestBase5 = 0xFF11'0000'0000'0000;
constexpr uint64_t kBaseStep = 1u << 30;
constexpr int kLevelsMax = 5;

// Two pages of our own: one with content that no other page has, one that shows the zero page.
class OwnPages {
 public:
  OwnPages() {
    at_ =
        ::mmap(nullptr, 2 * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at_ == MAP_FAILED) throw SysError::from_errno("map memory");
    (void)::madvise(at_, 2 * kPageSize, MADV_NOHUGEPAGE);
    std::random_device random;
    for (uint64_t& word : words()) word = uint64_t{random()} << 32 | random();
    (void)*static_cast<volatile uint8_t*>(at(1));
  }
  ~OwnPages() { ::munmap(at_, 2 * kPageSize); }
  OwnPages(const OwnPages&) = delete;
  OwnPages& operator=(const OwnPages&) = delete;

  [[nodiscard]] std::span<uint64_t> words() const {
    return {static_cast<uint64_t*>(at_), KernelPages::kWords};
  }
  [[nodiscard]] uint8_t* at(size_t page) const {
    return static_cast<uint8_t*>(at_) + page * kPageSize;
  }
  [[nodiscard]] uint64_t address() const { return reinterpret_cast<uint64_t>(at_); }

  // Numbers of their page frames; 0 where they are hidden.
  [[nodiscard]] std::array<uint64_t, 2> frames() const {
    const UniqueFd pagemap = open_path("/proc/self/pagemap", O_RDONLY);
    std::array<uint64_t, 2> entries{};
    const auto at = static_cast<off_t>(address() / kPageSize * sizeof(uint64_t));
    if (::pread(pagemap.get(), entries.data(), sizeof entries, at) != sizeof entries) {
      throw SysError::from_errno("read", on_path("/proc/self/pagemap"));
    }
    for (uint64_t& entry : entries) entry = (entry & kEntryPresent) != 0 ? entry & kEntryFrame : 0;
    return entries;
  }

 private:
  void* at_ = nullptr;
};

// The entry that maps one page.
class EntryFinder : public TableVisitor {
 public:
  explicit EntryFinder(uint64_t address) : address_(address) {}
  void table(uint64_t base, std::span<const uint64_t> entries) override {
    entry = entries[(address_ - base) / kPageSize];
  }
  void huge(uint64_t, uint64_t) override {}
  void pause() override {}
  uint64_t entry = 0;

 private:
  uint64_t address_;
};

template <class Value>
Value value_of(std::span<const uint8_t> bytes) {
  Value value{};
  if (bytes.size() >= sizeof value) std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

pid_t own_tid() { return static_cast<pid_t>(::syscall(SYS_gettid)); }

}  // namespace

const PageTables::Source& PageTables::source() {
  static const Source source = [] {
    Source made;
    try {
      std::unique_ptr<PageTables> tables(new PageTables(BtfTypes::load()));
      tables->calibrate();
      made.tables = tables.release();  // lives as long as the process
    } catch (const SysError& error) {
      made.refusal = error.what();
    } catch (const FormatError& error) {
      made.refusal = error.what();
    }
    return made;
  }();
  return source;
}

PageTables* PageTables::instance() { return source().tables; }

const std::string& PageTables::refusal() { return source().refusal; }

PageTables::PageTables(const BtfTypes& types)
    : memory_(types),
      task_memory_(types.offset("task_struct", "mm")),
      memory_root_(types.offset("mm_struct", "pgd")) {}

// The end of physical memory, from the lines "start-end : System RAM" of /proc/iomem.
void PageTables::read_memory_end() {
  const auto text = read_proc("/proc/iomem");
  uint64_t end = 0;
  for (size_t at = 0; text && at < text->size();) {
    const size_t next = std::min(text->find('\n', at), text->size());
    const std::string line = text->substr(at, next - at);
    uint64_t first = 0, last = 0;
    if (line.find(": System RAM") != std::string::npos &&
        std::sscanf(line.c_str(), " %lx-%lx", &first, &last) == 2) {
      end = std::max(end, last + 1);
    }
    at = next + 1;
  }
  // Without CAP_SYS_ADMIN all addresses are 0.
  if (end < kPageSize * 2) throw SysError("find the end of memory", EPERM, on_path("/proc/iomem"));
  memory_end_ = end;
}

std::optional<uint64_t> PageTables::root(pid_t host_tid) {
  const std::lock_guard lock(mutex_);
  if (memory_grew_) read_memory_end();
  memory_grew_ = false;
  memory_.start();
  const size_t task = memory_.ask(task_memory_, sizeof(uint64_t), static_cast<uint32_t>(host_tid));
  memory_.run();
  const auto memory = value_of<uint64_t>(memory_.result(task));
  if (memory == 0) return std::nullopt;
  memory_.start();
  const size_t top = memory_.ask(memory + memory_root_, sizeof(uint64_t));
  memory_.run();
  const auto root = value_of<uint64_t>(memory_.result(top));
  const bool inside = base_ == 0 || (root >= base_ && root - base_ < memory_end_);
  if (root == 0 || root % kPageSize != 0 || !inside) return std::nullopt;
  return root;
}

// In a PID namespace of our own our ids name other tasks to the kernel, whose tables do not show
// our page: refused as well.
void PageTables::calibrate() {
  read_memory_end();
  const auto own = root(own_tid());
  if (!own) throw SysError("find page tables", ESRCH);
  const OwnPages pages;
  const auto frames = pages.frames();
  if (frames[0] == 0) throw SysError("see page frames", EPERM, on_path("/proc/self/pagemap"));
  if (!find_base(*own, frames[0], pages.words())) {
    throw SysError("find the direct map of memory", ENOSYS);
  }
  for (levels_ = kLevelsMax - 1; levels_ <= kLevelsMax; ++levels_) {
    if (!shows(*own, pages.address(), frames[0])) continue;
    if (frames[1] != 0 && shows(*own, pages.address() + kPageSize, frames[1])) {
      zero_page_ = frames[1] * kPageSize;
    }
    return;
  }
  throw SysError("walk page tables", ENOSYS);
}

// The base is where our page is found. The top table lies in the direct map, so the base is at most
// the machine's memory below it. Candidates ascend: one that is too low leads to lower memory or to
// nothing, never beyond the direct map, where devices are mapped whose registers mind being read.
bool PageTables::find_base(uint64_t root, uint64_t frame, std::span<const uint64_t> content) {
  const uint64_t lowest = root >= kLowestBase4 ? kLowestBase4 : kLowestBase5;
  if (root < lowest) return false;
  const uint64_t last = root & ~(kBaseStep - 1);
  const uint64_t memory = (memory_end_ + kBaseStep - 1) & ~(kBaseStep - 1);
  for (uint64_t candidate = last - lowest > memory ? last - memory : lowest; candidate <= last;
       candidate += kBaseStep) {
    const uint64_t address = candidate + frame * kPageSize;
    pages_.read({&address, 1});
    const auto found = pages_.page(0);
    if (!std::equal(found.begin(), found.end(), content.begin(), content.end())) continue;
    base_ = candidate;
    return true;
  }
  return false;
}

bool PageTables::shows(uint64_t root, uint64_t address, uint64_t frame) {
  EntryFinder finder(address);
  const PageRange page{address, address + kPageSize};
  walk(root, {&page, 1}, finder);
  const uint64_t physical = finder.entry & kTableAddress & (std::bit_ceil(memory_end_) - 1);
  return (finder.entry & kTablePresent) != 0 && physical == frame * kPageSize;
}

void PageTables::walk(uint64_t root, std::span<const PageRange> ranges, TableVisitor& visitor) {
  if (ranges.empty()) return;
  const Table top{root, 0, 0};
  descend({&top, 1}, levels_, ranges, visitor);
}

// Depth first, so that no more than kPagesMax tables of each level are remembered.
void PageTables::descend(std::span<const Table> tables, int level,
                         std::span<const PageRange> ranges, TableVisitor& visitor) {
  std::vector<Table> below;
  while (!tables.empty()) {
    const auto some = tables.first(std::min(tables.size(), KernelPages::kPagesMax));
    tables = tables.subspan(some.size());
    below.clear();
    {
      std::array<uint64_t, KernelPages::kPagesMax> addresses{};
      for (size_t i = 0; i < some.size(); ++i) addresses[i] = some[i].address;
      const std::lock_guard lock(mutex_);
      pages_.read({addresses.data(), some.size()});
      for (size_t i = 0; i < some.size(); ++i) {
        if (some[i].huge != 0) visitor.huge(some[i].base, some[i].huge);
        const auto entries = pages_.page(i);
        if (entries.empty() || some[i].huge != 0) continue;
        if (level == 1) {
          visitor.table(some[i].base, entries);
        } else {
          expand(some[i], level, entries, ranges, below);
        }
      }
    }
    if (level == 1) visitor.pause();
    if (!below.empty()) descend(below, level - 1, ranges, visitor);
  }
}

void PageTables::expand(const Table& table, int level, std::span<const uint64_t> entries,
                        std::span<const PageRange> ranges, std::vector<Table>& below) {
  const uint64_t bytes = entry_bytes(level);
  const uint64_t end = table.base + table_bytes(level);
  // Memory encryption marks entries with a bit above the highest address.
  const uint64_t mask = kTableAddress & (std::bit_ceil(memory_end_) - 1);
  size_t next = 0;  // entry that was not looked at yet: two ranges may lie in one
  auto range = std::upper_bound(
      ranges.begin(), ranges.end(), table.base,
      [](uint64_t address, const PageRange& other) { return address < other.end; });
  for (; range != ranges.end() && range->start < end; ++range) {
    const uint64_t from = std::max(range->start, table.base) - table.base;
    const uint64_t to = std::min(range->end, end) - table.base;
    for (next = std::max(next, from / bytes); next * bytes < to; ++next) {
      const uint64_t entry = entries[next];
      const uint64_t base = table.base + next * bytes;
      if (level == 2 && is_huge(entry)) below.push_back({0, base, entry});
      if ((entry & kTablePresent) == 0 || (level <= 3 && (entry & kTableHuge) != 0)) continue;
      const uint64_t physical = entry & mask;
      if (physical < memory_end_) {
        below.push_back({base_ + physical, base, 0});
      } else {
        memory_grew_ = true;
      }
    }
  }
}

}  // namespace replpage
