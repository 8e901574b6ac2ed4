#include "core/access/page_walk_tracker.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "core/access/page_tables.h"
#include "core/base/clock.h"
#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/memory/memory_thread.h"
#include "core/memory/resident_pages.h"

namespace replpage {
namespace {

// Writing 1 to clear_refs goes through the whole process (15-22 ms a GiB) and locks its address
// space against mmap all that time.
constexpr uint64_t kClearWholeMax = 1u << 30;

// Collects what was touched in some tables.
class TouchedPages : public TableVisitor {
 public:
  explicit TouchedPages(std::span<const PageRange> mapped, uint64_t zero)
      : mapped_(mapped), zero_(zero) {}

  void table(uint64_t base, std::span<const uint64_t> entries) override {
    const uint64_t end = base + kHugeBytes;
    for (size_t i = first_of(base); i < mapped_.size() && mapped_[i].start < end; ++i) {
      const uint64_t from = std::max(mapped_[i].start, base);
      const uint64_t to = std::min(mapped_[i].end, end);
      append_touched(entries, base, (from - base) / kPageSize, (to - base) / kPageSize, zero_,
                     touched);
    }
  }

  // One that reaches beyond its mapping as we know it is told, but never advised.
  void huge(uint64_t base, uint64_t entry) override {
    if (!is_touched(entry)) return;
    const PageRange whole{base, base + kHugeBytes};
    for (size_t i = first_of(base); i < mapped_.size() && mapped_[i].start < whole.end; ++i) {
      const PageRange part{std::max(mapped_[i].start, base), std::min(mapped_[i].end, whole.end)};
      append_range(part == whole ? touched : touched_in_part, part);
      if (part == whole) ++huge_pages;
    }
  }

  void pause() override {}

  PageRanges touched;          // to be advised
  PageRanges touched_in_part;  // not to be
  uint64_t huge_pages = 0;     // of `touched`

 private:
  // The walk ascends.
  size_t first_of(uint64_t base) {
    while (first_ < mapped_.size() && mapped_[first_].end <= base) ++first_;
    return first_;
  }

  std::span<const PageRange> mapped_;
  uint64_t zero_;
  size_t first_ = 0;
};

uint64_t thread_us() { return clock_us(CLOCK_THREAD_CPUTIME_ID); }

// A page that we touch, clear and touch again. Empty: all of it shows.
std::string try_on_page(PageTables& tables, uint64_t root, ColdAdvice& advice) {
  void* const at =
      ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) throw SysError::from_errno("map memory");
  const auto start = reinterpret_cast<uint64_t>(at);
  const PageRange page{start, start + kPageSize};
  const auto touched = [&] {
    TouchedPages found({&page, 1}, tables.zero_page());
    tables.walk(root, {&page, 1}, found);
    return !found.touched.empty();
  };
  auto* const byte = static_cast<volatile uint8_t*>(at);
  *byte = 1;
  std::string refusal;
  if (!touched()) refusal = "a page that we wrote does not show as touched";
  const bool given = advice.give({&page, 1}) == ColdAdvice::Outcome::kGiven;
  if (refusal.empty() && given && touched()) refusal = "process_madvise(MADV_COLD) clears nothing";
  (void)*byte;
  if (refusal.empty() && !touched()) refusal = "a page that we read does not show as touched";
  ::munmap(at, kPageSize);
  return refusal;
}

// The kernel passes over a page that waits in a processor's batch to be put on its lists. Advice
// empties the batch of the processor that gives it, which is another one when we were moved since.
std::string try_on_own_pages() {
  PageTables* const tables = PageTables::instance();
  if (tables == nullptr) return PageTables::refusal();
  const auto root = tables->root(static_cast<pid_t>(::syscall(SYS_gettid)));
  if (!root) return "our own page tables are not found";
  ColdAdvice advice(::getpid());
  constexpr int kTries = 20;
  std::string refusal;
  for (int i = 0; i < kTries; ++i) {
    refusal = try_on_page(*tables, *root, advice);
    if (refusal.empty()) break;
  }
  return refusal;
}

}  // namespace

std::string PageWalkTracker::refusal() {
  if (anonymous_memory_can_go()) {
    return "swap or memory tiers are in use: clearing accessed bits would say what goes there "
           "first";
  }
  static const std::string found = [] {
    try {
      return try_on_own_pages();
    } catch (const SysError& error) {
      return std::string(error.what());
    }
  }();
  return found;
}

// Clears what it finds after every batch of tables, so that few touches fall between the look and
// the clearing.
class PageWalkTracker::Walk : public TouchedPages {
 public:
  Walk(PageWalkTracker& tracker, std::span<const PageRange> mapped, uint64_t zero, bool clears,
       const Visit& visit)
      : TouchedPages(mapped, zero),
        tracker_(tracker),
        mapped_(mapped),
        folio_bytes_(folio_bytes_max()),
        clears_(clears),
        visit_(visit) {}

  void pause() override {
    if (clears_ && !touched.empty()) clear();
    bits_in_all += bits();
    if (!touched_in_part.empty()) touched = unite_ranges(touched, touched_in_part);
    sample.touched_pages += total_bytes(touched) / kPageSize;
    if (!touched.empty()) tell();
    touched.clear();
    touched_in_part.clear();
    huge_pages = 0;
  }

  AccessSample sample;
  uint64_t bits_in_all = 0;

  uint64_t visit_us = 0;  // the caller's

 private:
  void tell() {
    const uint64_t start = thread_us();
    visit_(touched);
    visit_us += thread_us() - start;
  }

  [[nodiscard]] uint64_t bits() const {
    return total_bytes(touched) / kPageSize - huge_pages * (kEntriesPerTable - 1);
  }
  void clear() {
    const uint64_t start = thread_us();
    const PageRanges plan = plan_advice(touched, mapped_, folio_bytes_);
    const auto outcome = tracker_.advice_->give(plan);
    if (outcome == ColdAdvice::Outcome::kGiven) {
      sample.cleared_bits += bits();
    } else {
      clears_ = false;
      sample.process_gone = outcome == ColdAdvice::Outcome::kGone;
      tracker_.advice_refused_ = outcome == ColdAdvice::Outcome::kRefused;
    }
    sample.clear_us += thread_us() - start;
  }

  PageWalkTracker& tracker_;
  std::span<const PageRange> mapped_;
  uint64_t folio_bytes_;
  bool clears_;
  const Visit& visit_;
};

AccessSample PageWalkTracker::sample(std::span<const MappingImage> mappings, const Visit& visit) {
  PageTables* const tables = PageTables::instance();
  if (tables == nullptr) throw SysError("walk page tables", ENOTSUP, on_pid(pid_));
  const uint64_t start = thread_us();
  const auto tid = memory_thread(pid_);
  const auto root = tid ? tables->root(*tid) : std::nullopt;
  AccessSample gone;
  gone.process_gone = true;
  if (!root) return gone;
  // Swap that was turned on since: what is touched from now on is still seen, once.
  const bool stays = !anonymous_memory_can_go();
  try {
    if (!advice_ || tid_ != *tid) advice_ = std::make_unique<ColdAdvice>(*tid);
  } catch (const SysError& error) {
    if (error.error() == ESRCH) return gone;
    advice_refused_ = true;  // its first thread has ended; before Linux 6.9 a pidfd names no other
  }
  tid_ = *tid;
  const PageRanges mapped = sampled_ranges(mappings);
  Walk walk(*this, mapped, tables->zero_page(), stays && !advice_refused_, visit);
  tables->walk(*root, mapped, walk);
  AccessSample& sample = walk.sample;
  sample.looked_bytes = total_bytes(mapped);
  sample.look_us = thread_us() - start - sample.clear_us - walk.visit_us;
  sample.began_anew = stays && !advice_refused_;
  if (stays && advice_refused_) {
    const uint64_t before = thread_us();
    sample.began_anew = clear_whole();
    if (sample.began_anew) sample.cleared_bits = walk.bits_in_all;
    sample.clear_us += thread_us() - before;
  }
  return std::move(sample);
}

// Where advice is refused. Throws SysError where that is too much for the process.
bool PageWalkTracker::clear_whole() {
  const ResidentPages resident = resident_pages(pid_);
  if ((resident.own + resident.shared) * kPageSize > kClearWholeMax) {
    throw SysError("clear accessed bits", EPERM, on_pid(pid_));
  }
  const UniqueFd file = open_path(thread_file(pid_, tid_, "clear_refs"), O_WRONLY);
  return ::write(file.get(), "1", 1) == 1;
}

}  // namespace replpage
