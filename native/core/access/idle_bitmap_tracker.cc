#include "core/access/idle_bitmap_tracker.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "core/base/clock.h"
#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/memory/memory_thread.h"
#include "core/memory/pagemap_entries.h"
#include "core/memory/zero_frames.h"

namespace replpage {
namespace {

constexpr uint64_t kHugePages = 512;
constexpr size_t kEntriesPerLook = 1 << 16;                                // 256 MiB of the process
constexpr uint64_t kCompoundHead = 1u << 15, kTransparentHuge = 1u << 22;  // of kpageflags

uint64_t thread_us() { return clock_us(CLOCK_THREAD_CPUTIME_ID); }

// Entries of the pages from `start` on; fewer, or none, when the process is gone.
std::span<const uint64_t> read_entries(const UniqueFd& pagemap, uint64_t start,
                                       std::span<uint64_t> entries) {
  const ssize_t got = ::pread(pagemap.get(), entries.data(), entries.size_bytes(),
                              static_cast<off_t>(start / kPageSize * sizeof(uint64_t)));
  return entries.first(got > 0 ? static_cast<size_t>(got) / sizeof(uint64_t) : 0);
}

// Enough pages that the first of them have left the batches in which the kernel puts new pages on
// its lists: only then can they be idle.
class TrialPages {
 public:
  static constexpr size_t kPages = 256, kTried = 16;
  TrialPages() {
    at_ = ::mmap(nullptr, kPages * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                 -1, 0);
    if (at_ == MAP_FAILED) throw SysError::from_errno("map memory");
    (void)::madvise(at_, kPages * kPageSize, MADV_NOHUGEPAGE);
    touch(kPages);
  }
  ~TrialPages() { ::munmap(at_, kPages * kPageSize); }
  TrialPages(const TrialPages&) = delete;
  TrialPages& operator=(const TrialPages&) = delete;

  void touch(size_t pages) {
    for (size_t i = 0; i < pages; ++i) static_cast<volatile uint8_t*>(at_)[i * kPageSize] = 1;
  }
  [[nodiscard]] std::vector<uint64_t> frames() const {
    const UniqueFd pagemap = open_path("/proc/self/pagemap", O_RDONLY);
    std::vector<uint64_t> entries(kTried);
    std::vector<uint64_t> frames;
    for (const uint64_t entry : read_entries(pagemap, reinterpret_cast<uint64_t>(at_), entries)) {
      if ((entry & kEntryPresent) != 0 && (entry & kEntryFrame) != 0) {
        frames.push_back(entry & kEntryFrame);
      }
    }
    std::sort(frames.begin(), frames.end());
    return frames;
  }

 private:
  void* at_ = nullptr;
};

std::string try_on_own_pages() {
  IdleBitmap bitmap(kIdleBitmapPath);
  TrialPages pages;
  const auto frames = pages.frames();
  if (frames.size() < TrialPages::kTried) return "page frames are hidden (CAP_SYS_ADMIN)";
  const auto idle = [&] {
    const auto bits = bitmap.read(frames);
    return static_cast<size_t>(std::count(bits.begin(), bits.end(), 1));
  };
  bitmap.set(frames);
  if (idle() < TrialPages::kTried / 2) return "pages do not become idle";
  pages.touch(TrialPages::kTried);
  return idle() <= TrialPages::kTried / 2 ? "" : "pages that we wrote are idle still";
}

}  // namespace

std::string IdleBitmapTracker::refusal() {
  static const std::string found = [] {
    try {
      return try_on_own_pages();
    } catch (const SysError& error) {
      return std::string(error.what());
    }
  }();
  return found;
}

IdleBitmapTracker::IdleBitmapTracker(pid_t host_pid, std::unique_ptr<IdleBitmap> bitmap)
    : pid_(host_pid),
      bitmap_(std::move(bitmap)),
      frame_flags_(::open("/proc/kpageflags", O_RDONLY | O_CLOEXEC)) {}

// Only the first frame of a huge page has a bit.
bool IdleBitmapTracker::heads_huge_page(uint64_t frame) const {
  uint64_t flags = 0;
  const auto at = static_cast<off_t>(frame * sizeof flags);
  if (::pread(frame_flags_.get(), &flags, sizeof flags, at) != sizeof flags) return false;
  return (flags & kCompoundHead) != 0 && (flags & kTransparentHuge) != 0;
}

void IdleBitmapTracker::collect(uint64_t start, std::span<const uint64_t> entries) {
  items_.clear();
  for (size_t i = 0; i < entries.size(); ++i) {
    const uint64_t frame = entries[i] & kEntryFrame;
    if ((entries[i] & kEntryPresent) == 0 || frame == 0) continue;
    const uint64_t address = start + i * kPageSize;
    uint64_t pages = 1;
    if (frame % kHugePages == 0 && address / kPageSize % kHugePages == 0) {
      while (pages < kHugePages && i + pages < entries.size() &&
             (entries[i + pages] & kEntryPresent) != 0 &&
             (entries[i + pages] & kEntryFrame) == frame + pages) {
        ++pages;
      }
      if (pages < kHugePages || !heads_huge_page(frame)) pages = 1;
    }
    items_.push_back({frame, address, pages});
    i += pages - 1;
  }
  std::sort(items_.begin(), items_.end(),
            [](const Item& a, const Item& b) { return a.frame < b.frame; });
}

// Only frames that are no longer idle are made so again.
void IdleBitmapTracker::look(AccessSample& sample, const Visit& visit) {
  const uint64_t start = thread_us();
  frames_.clear();
  for (const Item& item : items_) frames_.push_back(item.frame);
  const auto idle = bitmap_->read(frames_);
  PageRanges touched;
  frames_.clear();
  for (size_t i = 0; i < items_.size(); ++i) {
    if (idle[i] != 0) continue;
    // Two pages may show one frame.
    if (frames_.empty() || frames_.back() != items_[i].frame) frames_.push_back(items_[i].frame);
    touched.push_back({items_[i].address, items_[i].address + items_[i].pages * kPageSize});
  }
  touched = normal_ranges(std::move(touched));
  const uint64_t found = thread_us();
  bitmap_->set(frames_);
  sample.look_us += found - start;
  sample.clear_us += thread_us() - found;
  sample.touched_pages += total_bytes(touched) / kPageSize;
  sample.cleared_bits += frames_.size();
  if (!touched.empty()) visit(touched);
}

AccessSample IdleBitmapTracker::sample(std::span<const MappingImage> mappings, const Visit& visit) {
  AccessSample sample;
  const auto tid = memory_thread(pid_);
  sample.process_gone = !tid;
  if (!tid) return sample;
  const UniqueFd pagemap = open_path(thread_file(pid_, *tid, "pagemap"), O_RDONLY);
  const ZeroFrames* const zero = ZeroFrames::instance();
  std::vector<uint64_t> room(kEntriesPerLook);
  for (const PageRange& range : sampled_ranges(mappings)) {
    sample.looked_bytes += range.bytes();
    for (uint64_t at = range.start; at < range.end;) {
      const uint64_t start = thread_us();
      // Looks end where huge pages do.
      const uint64_t part = kEntriesPerLook * kPageSize;
      const uint64_t end = std::min(range.end, (at / part + 1) * part);
      const auto entries = read_entries(pagemap, at, std::span(room).first((end - at) / kPageSize));
      if (zero != nullptr) {
        zero->leave_out(std::span(room).first(entries.size()), at);
      }
      collect(at, entries);
      sample.look_us += thread_us() - start;
      if (!items_.empty()) look(sample, visit);
      at = end;
    }
  }
  return sample;
}

}  // namespace replpage
