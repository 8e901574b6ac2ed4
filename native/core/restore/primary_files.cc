#include "core/restore/primary_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <climits>
#include <cstdio>
#include <string_view>

namespace replpage {

// The host's pid may belong to another process by now, so what is found is compared.
UniqueFd PrimaryFiles::open_mapped(const MappingImage& mapping) const {
  char link[96];
  std::snprintf(link, sizeof link, "%d/map_files/%lx-%lx", host_pid_, mapping.start, mapping.end);
  if (!leads_to(link, mapping.path)) return {};
  const bool shared = mapping.kind == MappingKind::kFileShared;
  UniqueFd fd(::openat(proc_, link, (shared ? O_RDWR : O_RDONLY) | O_CLOEXEC));
  if (!fd.valid()) fd = UniqueFd(::openat(proc_, link, O_RDONLY | O_CLOEXEC));
  struct stat file {};
  if (!fd.valid() || ::fstat(fd.get(), &file) != 0 || file.st_ino != mapping.inode) return {};
  return fd;
}

UniqueFd PrimaryFiles::open_directory(const std::string& path) const {
  const std::string link = std::to_string(host_pid_) + "/cwd";
  if (!leads_to(link, path)) return {};
  UniqueFd fd(::openat(proc_, link.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  struct stat directory {};
  if (!fd.valid() || ::fstat(fd.get(), &directory) != 0 || directory.st_nlink != 0) return {};
  return fd;
}

bool PrimaryFiles::leads_to(const std::string& link, const std::string& path) const {
  if (proc_ < 0) return false;
  char target[PATH_MAX];
  const ssize_t size = ::readlinkat(proc_, link.c_str(), target, sizeof target);
  return size >= 0 && std::string_view(target, static_cast<size_t>(size)) == path;
}

}  // namespace replpage
