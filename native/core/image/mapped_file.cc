#include "core/image/mapped_file.h"

#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/statfs.h>

#include <cstdio>

namespace replpage {

std::optional<MappedFileImage> read_mapped_file(pid_t host_pid, const MappingImage& mapping) {
  // The link leads to the very file, whatever its path names by now.
  char link[96];
  std::snprintf(link, sizeof link, "/proc/%d/map_files/%llx-%llx", host_pid,
                static_cast<unsigned long long>(mapping.start),
                static_cast<unsigned long long>(mapping.end));
  struct stat status {};
  struct statfs system {};
  if (::stat(link, &status) != 0 || ::statfs(link, &system) != 0) return std::nullopt;
  return MappedFileImage{
      .path = mapping.path,
      .identity = {.device = status.st_dev,
                   .inode = status.st_ino,
                   .size = static_cast<uint64_t>(status.st_size),
                   .change_time_ns =
                       status.st_ctim.tv_sec * 1'000'000'000 + status.st_ctim.tv_nsec},
      .times_tell = system.f_type != TMPFS_MAGIC && system.f_type != RAMFS_MAGIC};
}

}  // namespace replpage
