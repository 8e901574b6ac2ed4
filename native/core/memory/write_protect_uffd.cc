#include "core/memory/write_protect_uffd.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <string>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/memory/pagemap_scan.h"

namespace replpage {
namespace {

constexpr int kUserModeOnly = 1;                         // UFFD_USER_MODE_ONLY
constexpr uint64_t kFeatureWpAsync = 1u << 15;           // UFFD_FEATURE_WP_ASYNC
constexpr uint64_t kFeatureWpHugetlbfsShmem = 1u << 12;  // UFFD_FEATURE_WP_HUGETLBFS_SHMEM
constexpr uint64_t kHugePageBytes = 2u << 20;

void enable_async_write_protect(int uffd) {
  uffdio_api api{};
  api.api = UFFD_API;
  // WP_ASYNC brings WP_UNPOPULATED along (fs/userfaultfd.c): holes can be armed too, when asked.
  api.features = kFeatureWpAsync | kFeatureWpHugetlbfsShmem | UFFD_FEATURE_PAGEFAULT_FLAG_WP;
  if (::ioctl(uffd, UFFDIO_API, &api) != 0) throw SysError::from_errno("enable write-protect");
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

class ProbeMapping {
 public:
  explicit ProbeMapping(size_t bytes) : bytes_(bytes) {
    address_ = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (address_ == MAP_FAILED) throw SysError::from_errno("map memory");
    ::madvise(address_, bytes_, MADV_NOHUGEPAGE);
  }
  ~ProbeMapping() { ::munmap(address_, bytes_); }
  ProbeMapping(const ProbeMapping&) = delete;
  ProbeMapping& operator=(const ProbeMapping&) = delete;

  [[nodiscard]] uint64_t start() const { return reinterpret_cast<uint64_t>(address_); }
  [[nodiscard]] PageRange range() const { return {start(), start() + bytes_}; }
  void write(PageRange range) const {
    for (uint64_t at = range.start; at < range.end; at += kPageSize) {
      static_cast<volatile char*>(address_)[at - start()] = 1;
    }
  }

 private:
  void* address_ = MAP_FAILED;
  size_t bytes_;
};

UniqueFd create_own_uffd() {
  UniqueFd uffd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | kUserModeOnly)));
  if (!uffd.valid()) throw SysError::from_errno("create a userfaultfd");
  enable_async_write_protect(uffd.get());
  return uffd;
}

int register_write_protect(int uffd, PageRange range) {
  uffdio_register request{};
  request.range = {range.start, range.bytes()};
  request.mode = UFFDIO_REGISTER_MODE_WP;
  return ::ioctl(uffd, UFFDIO_REGISTER, &request) == 0 ? 0 : errno;
}

constexpr PageQuery kArmWritten = {.inverted = 0,
                                   .required = kPageWritten,
                                   .any_of = 0,
                                   .returned = kPageWritten,
                                   .write_protect = true};

// Arms two written pages, writes one and asks which were written.
bool probe_tracking() {
  const ProbeMapping mapping(2 * kPageSize);
  mapping.write(mapping.range());
  const UniqueFd uffd = create_own_uffd();
  if (register_write_protect(uffd.get(), mapping.range()) != 0) return false;
  PagemapScan pages(::getpid(), ::gettid());
  PageRanges first;
  pages.collect(mapping.range(), kArmWritten, first);
  const PageRange second_page = {mapping.start() + kPageSize, mapping.range().end};
  mapping.write(second_page);
  PageRanges second;
  pages.collect(mapping.range(), kArmWritten, second);
  return first == PageRanges{mapping.range()} && second == PageRanges{second_page};
}

// Discards a page, and all pages of a page table, among armed ones.
bool probe_discards() {
  const ProbeMapping mapping(4 * kHugePageBytes);
  mapping.write(mapping.range());
  const UniqueFd uffd = create_own_uffd();
  if (register_write_protect(uffd.get(), mapping.range()) != 0) return false;
  PagemapScan pages(::getpid(), ::gettid());
  PageRanges first;
  pages.collect(mapping.range(), kArmWritten, first);
  const uint64_t table = (mapping.start() + kHugePageBytes - 1) & ~(kHugePageBytes - 1);
  const PageRange whole = {table, table + kHugePageBytes};
  const PageRange one = {whole.end + 5 * kPageSize, whole.end + 6 * kPageSize};
  for (const PageRange& range : {whole, one}) {
    ::madvise(reinterpret_cast<void*>(range.start), range.bytes(), MADV_DONTNEED);
  }
  PageRanges second;
  pages.collect(mapping.range(), kArmWritten, second);
  return second == PageRanges{whole, one};
}

bool succeeds(bool (*probe)()) {
  try {
    return probe();
  } catch (const SysError&) {
    return false;
  }
}

}  // namespace

bool WriteProtectUffd::supported() {
  static const bool works = succeeds(probe_tracking);
  return works;
}

bool WriteProtectUffd::reports_discards() {
  static const bool works = supported() && succeeds(probe_discards);
  return works;
}

WriteProtectUffd::WriteProtectUffd(pid_t pid, const MemoryCapture::Injector& injector)
    : fd_(create_remote_uffd(pid, injector)) {}

int WriteProtectUffd::try_register(PageRange range) const {
  return register_write_protect(fd_.get(), range);
}

}  // namespace replpage
