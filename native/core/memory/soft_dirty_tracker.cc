#include "core/memory/soft_dirty_tracker.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <string>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/memory/memory_thread.h"
#include "core/memory/swap_areas.h"
#include "core/memory/zero_frames.h"

namespace replpage {
namespace {

constexpr size_t kEntriesPerRead = 65536;  // 512 KiB for 256 MiB of memory

EntryQuery present_in(const MappingImage& mapping) {
  return {.any_of = kEntryPresent | kEntrySwapped,
          .required = 0,
          .excluded = is_file_backed_private(mapping.kind) ? kEntryFile : 0};
}

EntryQuery written_in(const MappingImage& mapping) {
  EntryQuery query = present_in(mapping);
  query.required = kEntrySoftDirty;
  return query;
}

// Writes 4 to clear_refs: "clear the soft-dirty bits" (proc_pid_clear_refs(5)).
void clear_soft_dirty(int clear_refs, pid_t pid) {
  if (::pwrite(clear_refs, "4", 1, 0) != 1) {
    throw SysError::from_errno("clear soft-dirty bits", on_pid(pid));
  }
}

bool soft_dirty(int pagemap, const volatile void* address) {
  uint64_t entry = 0;
  const auto page = reinterpret_cast<uint64_t>(address) / kPageSize;
  const ssize_t got =
      ::pread(pagemap, &entry, sizeof entry, static_cast<off_t>(page * sizeof entry));
  return got == sizeof entry && (entry & kEntrySoftDirty) != 0;
}

bool probe() {
  void* address =
      ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (address == MAP_FAILED) return false;
  bool works = false;
  try {
    const UniqueFd pagemap = open_path("/proc/self/pagemap", O_RDONLY);
    const UniqueFd clear_refs = open_path("/proc/self/clear_refs", O_WRONLY);
    auto* page = static_cast<volatile char*>(address);
    page[0] = 1;
    const bool before = soft_dirty(pagemap.get(), page);
    clear_soft_dirty(clear_refs.get(), ::getpid());
    const bool cleared = !soft_dirty(pagemap.get(), page);
    page[0] = 2;
    works = before && cleared && soft_dirty(pagemap.get(), page);
  } catch (const SysError&) {
    works = false;
  }
  ::munmap(address, kPageSize);
  return works && ZeroFrames::instance() != nullptr;
}

}  // namespace

bool SoftDirtyTracker::supported() {
  static const bool works = probe();
  return works;
}

SoftDirtyTracker::SoftDirtyTracker(pid_t host_pid, pid_t tid)
    : SoftDirtyTracker(host_pid, open_path(thread_file(host_pid, tid, "pagemap"), O_RDONLY),
                       open_path(thread_file(host_pid, tid, "clear_refs"), O_WRONLY)) {}

SoftDirtyTracker::SoftDirtyTracker(pid_t host_pid, UniqueFd pagemap, UniqueFd clear_refs)
    : pid_(host_pid),
      pagemap_(std::move(pagemap)),
      clear_refs_(std::move(clear_refs)),
      entries_(kEntriesPerRead) {}

void SoftDirtyTracker::look(std::span<const MappingImage> mappings, MemoryView& view) {
  if (first_) {
    clear();  // whatever is written from here on is reported next time
    private_ = read_private(mappings, view);
    view.written = view.present;
    first_ = false;
  } else if (all_threads_stopped()) {
    private_ = read_private(mappings, view);
    shared_present_ = read_shared(mappings);
    clear();
  } else {
    view.present = private_.pages();
  }
}

void SoftDirtyTracker::peek(std::span<const MappingImage> mappings, MemoryView& view) {
  read_private(mappings, view);
  read_shared(mappings);
}

FrameMap SoftDirtyTracker::read_private(std::span<const MappingImage> mappings, MemoryView& view) {
  FrameMap now;
  const ZeroFrames* const frames = ZeroFrames::instance();
  for (const MappingImage& mapping : mappings) {
    if (!holds_private_pages(mapping.kind)) continue;
    read_entries(mapping.range(), [&](std::span<uint64_t> entries, uint64_t start) {
      if (frames != nullptr) frames->leave_out(entries, start);
      now.add(entries, start, present_in(mapping));
      append_matching(entries, start, written_in(mapping), view.written);
      return true;
    });
  }
  view.present = now.pages();
  view.written = unite_ranges(view.written, now.changed_since(private_));
  return now;
}

uint64_t SoftDirtyTracker::count(std::span<const MappingImage> mappings, uint64_t limit) {
  uint64_t pages = 0;
  for (const MappingImage& mapping : mappings) {
    const bool copied =
        holds_private_pages(mapping.kind) || mapping.kind == MappingKind::kSharedObject;
    if (!copied || pages >= limit) continue;
    const EntryQuery query = written_in(mapping);
    read_entries(mapping.range(), [&](std::span<const uint64_t> entries, uint64_t /*start*/) {
      pages += static_cast<uint64_t>(std::count_if(
          entries.begin(), entries.end(), [&query](uint64_t e) { return query.matches(e); }));
      return pages < limit;
    });
  }
  return std::min(pages, limit);
}

// look() has cleared the bits of shared mappings too, so it noted them.
PageRanges SoftDirtyTracker::look_shared(const MappingImage& mapping,
                                         std::span<const PageRange> parts) {
  const PageRange whole = mapping.range();
  const PageRanges here = intersect_ranges(shared_written_, {&whole, 1});
  shared_written_ = subtract_ranges(shared_written_, {&whole, 1});
  return intersect_ranges(here, parts);
}

PageRanges SoftDirtyTracker::read_shared(std::span<const MappingImage> mappings) {
  PageRanges mapped, present, written;
  for (const MappingImage& mapping : mappings) {
    if (mapping.kind != MappingKind::kSharedObject) continue;
    append_range(mapped, mapping.range());
    read_shared(mapping, present, written);
  }
  const PageRanges unmapped = intersect_ranges(subtract_ranges(shared_present_, present), mapped);
  shared_written_ = unite_ranges(shared_written_, unite_ranges(written, unmapped));
  return present;
}

void SoftDirtyTracker::read_shared(const MappingImage& mapping, PageRanges& present,
                                   PageRanges& written) {
  if (swap_in_use()) {  // a page that was swapped out keeps no bit
    append_range(written, mapping.range());
    return;
  }
  constexpr EntryQuery kThere{
      .any_of = kEntryPresent | kEntrySwapped, .required = 0, .excluded = 0};
  constexpr EntryQuery kWritten{
      .any_of = kEntryPresent | kEntrySwapped, .required = kEntrySoftDirty, .excluded = 0};
  read_entries(mapping.range(), [&](std::span<const uint64_t> entries, uint64_t start) {
    append_matching(entries, start, kThere, present);
    append_matching(entries, start, kWritten, written);
    return true;
  });
}

void SoftDirtyTracker::read_entries(
    PageRange range, const std::function<bool(std::span<uint64_t>, uint64_t)>& visit) {
  for (uint64_t at = range.start; at < range.end;) {
    const size_t wanted =
        std::min<uint64_t>(entries_.size(), (range.end - at) / kPageSize) * sizeof(uint64_t);
    const ssize_t got = ::pread(pagemap_.get(), entries_.data(), wanted,
                                static_cast<off_t>(at / kPageSize * sizeof(uint64_t)));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw SysError::from_errno("read the page map", at_address(pid_, at));
    const size_t count = static_cast<size_t>(got) / sizeof(uint64_t);
    if (count == 0) return;  // no address space any more
    if (!visit({entries_.data(), count}, at)) return;
    at += count * kPageSize;
  }
}

void SoftDirtyTracker::clear() {
  try {
    clear_soft_dirty(clear_refs_.get(), pid_);
  } catch (const SysError& error) {
    if (error.error() != ESRCH) throw;  // gone: then there is nothing to be seen either
  }
}

bool SoftDirtyTracker::all_threads_stopped() const {
  const auto threads = numeric_entries("/proc/" + std::to_string(pid_) + "/task");
  for (const int tid : threads.value_or(std::vector<int>())) {
    const auto stat = read_proc(thread_file(pid_, tid, "stat"));
    if (!stat) continue;
    // "tid (name) state ...", and the name may hold anything.
    const size_t after = stat->rfind(") ");
    const char state = after == std::string::npos ? '?' : (*stat)[after + 2];
    if (std::string_view("tTZX").find(state) == std::string_view::npos) return false;
  }
  return true;
}

}  // namespace replpage
