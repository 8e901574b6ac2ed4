#include "core/memory/uffd_wp_tracker.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <string>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/memory/swap_areas.h"

namespace replpage {
namespace {

constexpr uint64_t kFeatureWpAsync = 1u << 15;           // UFFD_FEATURE_WP_ASYNC, Linux 6.7
constexpr uint64_t kFeatureWpHugetlbfsShmem = 1u << 12;  // UFFD_FEATURE_WP_HUGETLBFS_SHMEM
constexpr uint64_t kHasContent = kPagePresent | kPageSwapped;

// Written private pages that hold content. The shared zero page is the same as a hole.
constexpr PageQuery written_query(bool arm) {
  return {.inverted = kPageZero,
          .required = kPageWritten | kPageZero,
          .any_of = kHasContent,
          .returned = 0,
          .write_protect = arm};
}

void enable_async_write_protect(int uffd) {
  uffdio_api api{};
  api.api = UFFD_API;
  // WP_ASYNC brings WP_UNPOPULATED along (fs/userfaultfd.c): holes of anonymous memory could be
  // armed too. The queries above never match holes of private mappings.
  api.features = kFeatureWpAsync | kFeatureWpHugetlbfsShmem | UFFD_FEATURE_PAGEFAULT_FLAG_WP;
  if (::ioctl(uffd, UFFDIO_API, &api) != 0) throw SysError::from_errno("enable write-protect");
}

int register_write_protect(int uffd, PageRange range) {
  uffdio_register request{};
  request.range = {range.start, range.bytes()};
  request.mode = UFFDIO_REGISTER_MODE_WP;
  return ::ioctl(uffd, UFFDIO_REGISTER, &request) == 0 ? 0 : errno;
}

bool has_own_userfaultfd(pid_t pid) {
  const std::string directory = "/proc/" + std::to_string(pid) + "/fd";
  for (const int fd : numeric_entries(directory).value_or(std::vector<int>())) {
    const auto target = read_link(directory + "/" + std::to_string(fd));
    if (target && *target == "anon_inode:[userfaultfd]") return true;
  }
  return false;
}

UniqueFd take_descriptor(pid_t pid, int remote) {
  UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!process.valid()) throw SysError::from_errno("open a pidfd", on_pid(pid));
  UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_getfd, process.get(), remote, 0)));
  if (!fd.valid()) throw SysError::from_errno("take the userfaultfd", on_pid(pid));
  return fd;
}

UniqueFd create_remote_uffd(pid_t pid, const MemoryCapture::Injector& injector) {
  if (has_own_userfaultfd(pid)) {
    throw SysError("track memory by a second userfaultfd", EBUSY, on_pid(pid));
  }
  const std::optional<long> remote = injector.create_uffd();
  if (!remote) throw SysError("create a userfaultfd", ESRCH, on_pid(pid));
  if (*remote < 0) {
    throw SysError("create a userfaultfd", static_cast<int>(-*remote), on_pid(pid));
  }
  struct CloseRemote {
    const MemoryCapture::Injector& injector;
    int fd;
    ~CloseRemote() { injector.close_remote(fd); }
  } close{injector, static_cast<int>(*remote)};
  UniqueFd uffd = take_descriptor(pid, close.fd);
  enable_async_write_protect(uffd.get());
  return uffd;
}

struct ProbeMapping {
  void* address = MAP_FAILED;
  size_t bytes = 2 * kPageSize;
  ProbeMapping() {
    address = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  }
  ~ProbeMapping() {
    if (address != MAP_FAILED) ::munmap(address, bytes);
  }
};

// Arms two written pages, writes one and asks which were written.
bool probe() {
  constexpr int kUserModeOnly = 1;  // UFFD_USER_MODE_ONLY
  UniqueFd uffd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | kUserModeOnly)));
  const ProbeMapping mapping;
  if (!uffd.valid() || mapping.address == MAP_FAILED) return false;
  auto* page = static_cast<volatile char*>(mapping.address);
  const auto start = reinterpret_cast<uint64_t>(mapping.address);
  const PageRange range = {start, start + mapping.bytes};
  try {
    enable_async_write_protect(uffd.get());
    page[0] = 1;
    page[kPageSize] = 1;
    if (register_write_protect(uffd.get(), range) != 0) return false;
    PagemapScan pages(::getpid(), ::gettid());
    PageRanges written;
    pages.collect(range, written_query(true), written);
    page[kPageSize] = 2;
    PageRanges again;
    pages.collect(range, written_query(true), again);
    return written == PageRanges{range} && again == PageRanges{{start + kPageSize, range.end}};
  } catch (const SysError&) {
    return false;
  }
}

// Neighbouring candidates are asked for in one call when less than this lies between them.
constexpr uint64_t kCandidateGap = 64 * kPageSize;

PageRanges without_small_gaps(const PageRanges& ranges) {
  PageRanges joined;
  for (const PageRange& range : ranges) {
    if (!joined.empty() && range.start - joined.back().end <= kCandidateGap) {
      joined.back().end = range.end;
    } else {
      joined.push_back(range);
    }
  }
  return joined;
}

PageRanges ranges_of(std::span<const MappingImage> mappings) {
  PageRanges ranges;
  for (const MappingImage& mapping : mappings) append_range(ranges, mapping.range());
  return ranges;
}

void append_ranges(PageRanges& ranges, std::span<const PageRange> more) {
  for (const PageRange& range : more) append_range(ranges, range);
}

}  // namespace

bool UffdWpTracker::supported() {
  static const bool works = probe();
  return works;
}

UffdWpTracker::UffdWpTracker(pid_t host_pid, pid_t tid, const MemoryCapture::Injector& injector)
    : pid_(host_pid), pages_(host_pid, tid), uffd_(create_remote_uffd(host_pid, injector)) {}

UffdWpTracker::UffdWpTracker(pid_t host_pid, pid_t tid) : pid_(host_pid), pages_(host_pid, tid) {}

template <class Visit>
void UffdWpTracker::for_each_group(std::span<const MappingImage> mappings, Visit&& visit) {
  for (size_t first = 0; first < mappings.size();) {
    const MappingKind kind = mappings[first].kind;
    if (!holds_private_pages(kind)) {
      ++first;
      continue;
    }
    const bool file_backed = is_file_backed_private(kind);
    size_t last = first + 1;
    while (last < mappings.size() && holds_private_pages(mappings[last].kind) &&
           is_file_backed_private(mappings[last].kind) == file_backed) {
      ++last;
    }
    visit(Group{mappings.subspan(first, last - first), file_backed});
    first = last;
  }
}

void UffdWpTracker::look(std::span<const MappingImage> mappings, MemoryView& view) {
  for_each_group(mappings, [&](const Group& group) { adopt(group, view.appeared); });
  PageRanges copied;
  for_each_group(mappings, [&](const Group& group) {
    if (!group.file_backed) {
      look_anonymous(group, true, view);
      return;
    }
    const size_t before = view.present.size();
    look_file_backed(group, true, view);
    for (size_t i = before; i < view.present.size(); ++i) append_range(copied, view.present[i]);
  });
  copied_file_pages_ = std::move(copied);
}

void UffdWpTracker::peek(std::span<const MappingImage> mappings, MemoryView& view) {
  for_each_group(mappings, [&](const Group& group) {
    if (group.file_backed) {
      look_file_backed(group, false, view);
    } else {
      look_anonymous(group, false, view);
    }
  });
}

uint64_t UffdWpTracker::count(std::span<const MappingImage> mappings, uint64_t limit) {
  uint64_t pages = 0;
  for_each_group(mappings, [&](const Group& group) {
    if (pages >= limit) return;
    PageQuery query = written_query(false);
    if (group.file_backed) {
      query.inverted |= kPageFile;
      query.required |= kPageFile;
    }
    pages_.scan(
        group.hull(), query,
        [&pages](const PageRegion& region) { pages += (region.end - region.start) / kPageSize; },
        limit - pages);
  });
  return std::min(pages, limit);
}

// Registers what is not registered: new mappings, and those that took the place of old ones. A
// range that cannot be registered (it is gone already, while the process runs) counts as appeared
// as well, at every look, so that nothing in it is ever taken for unchanged.
void UffdWpTracker::adopt(const Group& group, PageRanges& appeared) {
  PageRanges untracked;
  pages_.collect(group.hull(), {.inverted = kPageTracked, .required = kPageTracked}, untracked);
  if (untracked.empty()) return;
  for (const MappingImage& mapping : group.mappings) {
    const PageRange whole = mapping.range();
    for (const PageRange& range : intersect_ranges({&whole, 1}, untracked)) {
      register_range(range);
      append_range(appeared, range);
    }
  }
}

bool UffdWpTracker::register_range(PageRange range) {
  const int error = register_write_protect(uffd_.get(), range);
  if (error == EBUSY || error == ENOMEM) {
    throw SysError("track writes", error, at_address(pid_, range.start));
  }
  return error == 0;
}

void UffdWpTracker::look_anonymous(const Group& group, bool arm, MemoryView& view) {
  const PageRanges mapped = ranges_of(group.mappings);
  PageRanges written;
  pages_.collect(group.hull(), written_query(arm), written);
  const PageRanges present = present_anonymous(group);
  if (!view.appeared.empty()) {
    written = unite_ranges(written, intersect_ranges(view.appeared, present));
  }
  append_ranges(view.written, intersect_ranges(written, mapped));
  append_ranges(view.present, present);
}

// Asks for the opposite, since the cost of a scan is in the pages that match.
PageRanges UffdWpTracker::present_anonymous(const Group& group) {
  constexpr PageQuery kHoles = {.inverted = kPagePresent,
                                .required = 0,
                                .any_of = kPagePresent | kPageZero,
                                .returned = kPageSwapped,
                                .write_protect = false};
  PageRanges holes;
  pages_.scan(group.hull(), kHoles, [&holes](const PageRegion& region) {
    if ((region.categories & kPageSwapped) == 0) append_range(holes, {region.start, region.end});
  });
  return subtract_ranges(ranges_of(group.mappings), holes);
}

// Whether a page is the file's costs a look at its struct page (13 ms a GiB), so it is asked only
// for pages that were written or that were copies at the last look.
void UffdWpTracker::look_file_backed(const Group& group, bool arm, MemoryView& view) {
  const PageRanges mapped = ranges_of(group.mappings);
  PageRanges written;
  pages_.collect(group.hull(),
                 {.inverted = 0,
                  .required = kPageWritten,
                  .any_of = kHasContent,
                  .returned = 0,
                  .write_protect = arm},
                 written);
  if (!view.appeared.empty()) {
    written = unite_ranges(written, intersect_ranges(view.appeared, mapped));
  }
  const PageRanges copies = intersect_ranges(copied_file_pages_, mapped);
  PageRanges present;
  PageRanges swapped;
  for (const PageRange& range : without_small_gaps(unite_ranges(written, copies))) {
    pages_.scan(range,
                {.inverted = kPageFile,
                 .required = kPageFile,
                 .any_of = kHasContent,
                 .returned = kPageSwapped,
                 .write_protect = false},
                [&](const PageRegion& region) {
                  append_range(present, {region.start, region.end});
                  if ((region.categories & kPageSwapped) != 0) {
                    append_range(swapped, {region.start, region.end});
                  }
                });
  }
  present = intersect_ranges(present, mapped);
  // A discarded copy leaves a marker that looks like a swapped-out page. Reading it tells, and
  // brings the file's page in, so that the next look knows.
  const PageRanges doubtful = intersect_ranges(swapped, copies);
  append_ranges(view.written, intersect_ranges(unite_ranges(written, doubtful), present));
  append_ranges(view.present, present);
}

PageRanges UffdWpTracker::look_shared(const MappingImage& mapping,
                                      std::span<const PageRange> parts) {
  const PageRanges fresh = adopt_shared(mapping.range());
  // A page that is not mapped may have been written and unmapped again (MADV_DONTNEED, swap), so
  // holes are armed too: a marker alone proves that nothing happened.
  constexpr PageQuery kNotArmed = {.inverted = kPagePresent,
                                   .required = 0,
                                   .any_of = kPageWritten | kPagePresent,
                                   .returned = kPageWritten | kPageSwapped,
                                   .write_protect = true};
  PageRanges written;
  for (const PageRange& part : parts) {
    pages_.scan(part, kNotArmed, [&written](const PageRegion& region) {
      const bool marker = (region.categories & (kPageWritten | kPageSwapped)) == kPageSwapped;
      if (!marker) append_range(written, {region.start, region.end});
    });
  }
  if (fresh.empty() || swap_in_use()) return written;
  // Until now nothing was armed. What a new process wrote is mapped, unless it has been swapped
  // out; counting all its holes as well would copy the whole object at every fork.
  PageRanges touched;
  for (const PageRange& range : fresh) {
    pages_.collect(range, {.any_of = kPagePresent}, touched);
  }
  return unite_ranges(subtract_ranges(written, fresh), intersect_ranges(touched, parts));
}

// Returns what was not tracked before. A mapping that can never be written (EPERM) is left out.
PageRanges UffdWpTracker::adopt_shared(PageRange mapping) {
  PageRanges untracked;
  pages_.collect(mapping, {.inverted = kPageTracked, .required = kPageTracked}, untracked);
  PageRanges fresh;
  for (const PageRange& range : untracked) {
    const int error = register_write_protect(uffd_.get(), range);
    if (error == EBUSY || error == ENOMEM) {
      throw SysError("track writes", error, at_address(pid_, range.start));
    }
    if (error != EPERM) append_range(fresh, range);
  }
  return fresh;
}

}  // namespace replpage
