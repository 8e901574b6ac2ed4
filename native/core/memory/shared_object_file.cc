#include "core/memory/shared_object_file.h"

#include <fcntl.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <string>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"

namespace replpage {
namespace {

// Longest clock tick of a kernel (CONFIG_HZ=100), with room for rounding.
constexpr int64_t kClockTickNs = 20'000'000;

int64_t nanoseconds(const timespec& time) { return time.tv_sec * 1'000'000'000 + time.tv_nsec; }

bool same(const timespec& a, const timespec& b) {
  return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

std::optional<UniqueFd> open_link(const std::string& link) {
  UniqueFd fd(::open(link.c_str(), O_RDONLY | O_CLOEXEC | O_NOATIME));
  if (fd.valid()) return fd;
  if (errno == ENOENT || errno == ESRCH) return std::nullopt;
  throw SysError::from_errno("open shared memory", on_path(link));
}

}  // namespace

std::optional<SharedObjectFile> SharedObjectFile::open_mapping(pid_t host_pid,
                                                               const MappingImage& mapping) {
  char link[96];
  std::snprintf(link, sizeof link, "/proc/%d/map_files/%lx-%lx", host_pid, mapping.start,
                mapping.end);
  auto fd = open_link(link);
  if (!fd) return std::nullopt;
  struct stat status {};
  // The mapping may have been replaced since the map was read.
  if (::fstat(fd->get(), &status) != 0 || status.st_ino != mapping.inode) return std::nullopt;
  return SharedObjectFile(std::move(*fd));
}

std::optional<SharedObjectFile> SharedObjectFile::open_descriptor(pid_t host_pid,
                                                                  const SharedObjectImage& object) {
  const std::string directory = "/proc/" + std::to_string(host_pid) + "/fd";
  for (const int number : numeric_entries(directory).value_or(std::vector<int>())) {
    const std::string link = directory + "/" + std::to_string(number);
    struct stat status {};
    if (::stat(link.c_str(), &status) != 0 || !S_ISREG(status.st_mode) ||
        status.st_ino != object.inode || status.st_dev != object.device) {
      continue;
    }
    auto fd = open_link(link);
    if (fd) return SharedObjectFile(std::move(*fd));
  }
  return std::nullopt;
}

PageRanges SharedObjectFile::extents() const {
  PageRanges ranges;
  for (off_t at = 0;;) {
    const off_t data = ::lseek(fd_.get(), at, SEEK_DATA);
    if (data < 0 && errno == ENXIO) return ranges;  // only a hole is left
    if (data < 0) throw SysError::from_errno("find the data of shared memory");
    at = ::lseek(fd_.get(), data, SEEK_HOLE);
    if (at < 0 && errno == ENXIO) return ranges;  // truncated just now
    if (at < 0) throw SysError::from_errno("find the data of shared memory");
    append_range(ranges,
                 {page_floor(static_cast<uint64_t>(data)), page_ceil(static_cast<uint64_t>(at))});
  }
}

bool SharedObjectFile::changed_otherwise() {
  struct stat now {};
  timespec clock{};
  // The clock that file times are taken from (ktime_get_coarse_real_ts64).
  ::clock_gettime(CLOCK_REALTIME_COARSE, &clock);
  if (::fstat(fd_.get(), &now) != 0) throw SysError::from_errno("stat shared memory");
  const bool changed = too_fresh_ || !last_ || now.st_size != last_->st_size ||
                       now.st_blocks < last_->st_blocks || !same(now.st_ctim, last_->st_ctim) ||
                       !same(now.st_mtim, last_->st_mtim) || !same(now.st_atim, last_->st_atim);
  const int64_t newest =
      std::max({nanoseconds(now.st_ctim), nanoseconds(now.st_mtim), nanoseconds(now.st_atim)});
  too_fresh_ = newest >= nanoseconds(clock) - kClockTickNs;
  last_ = now;
  return changed;
}

void SharedObjectFile::read(std::span<const PageRange> ranges, std::span<uint8_t> room,
                            PageRanges& /*unreadable*/) {
  size_t done = 0;
  for (const PageRange& range : ranges) {
    for (uint64_t at = range.start; at < range.end;) {
      const ssize_t got =
          ::pread(fd_.get(), room.data() + done, range.end - at, static_cast<off_t>(at));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) throw SysError::from_errno("read shared memory");
      // Behind the end there is nothing but the rest of the last page, which is zero.
      const uint64_t bytes = got > 0 ? static_cast<uint64_t>(got) : range.end - at;
      if (got == 0) std::memset(room.data() + done, 0, bytes);
      at += bytes;
      done += bytes;
    }
  }
}

}  // namespace replpage
