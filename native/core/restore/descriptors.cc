#include "core/restore/descriptors.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>

#include "core/base/sys_error.h"
#include "core/restore/open_files.h"
#include "core/restore/table_installer.h"

namespace replpage {
namespace {

// The first process of the image that has the table and is part of the replica.
ReplicaProcess& process_with(const GroupImage& image, uint32_t table,
                             std::span<ReplicaProcess* const> processes) {
  for (const ProcessImage& state : image.processes) {
    if (state.file_table != table) continue;
    for (ReplicaProcess* process : processes) {
      if (process->pid() == state.pid) return *process;
    }
  }
  throw SysError("find the process of descriptor table " + std::to_string(table), ESRCH);
}

void check_file(const std::string& path, const FileIdentity& identity, mode_t expected) {
  struct stat now {};
  if (::stat(path.c_str(), &now) != 0) {
    throw SysError("a file has changed since the epoch", ESTALE, on_path(path));
  }
  const FileIdentity found{
      .device = now.st_dev,
      .inode = now.st_ino,
      .size = static_cast<uint64_t>(now.st_size),
      .change_time_ns = now.st_ctim.tv_sec * 1'000'000'000 + now.st_ctim.tv_nsec};
  if ((now.st_mode & S_IFMT) != expected || found != identity) {
    throw SysError("a file has changed since the epoch", ESTALE, on_path(path));
  }
}

}  // namespace

struct flock lock_range(const FileLock& lock) {
  struct flock range {};
  range.l_type = lock.exclusive ? F_WRLCK : F_RDLCK;
  range.l_whence = SEEK_SET;
  range.l_start = static_cast<off_t>(lock.start);
  range.l_len = static_cast<off_t>(lock.length);
  return range;
}

size_t descriptor_room(const GroupImage& image, uint32_t table) {
  constexpr size_t kSpare = 64;
  const auto& descriptors = image.file_tables.at(table).descriptors;
  const size_t numbers = descriptors.empty() ? 0 : static_cast<size_t>(descriptors.back().fd) + 1;
  // Of a watched file the one that it replaces may be needed, too.
  size_t watches = 0;
  for (const OpenFileImage& file : image.open_files) watches += file.watches.size();
  return numbers + image.open_files.size() + watches + kSpare;
}

void need_descriptor_limit(size_t numbers) {
  rlimit before{};
  if (::getrlimit(RLIMIT_NOFILE, &before) != 0) {
    throw SysError::from_errno("read the descriptor limit");
  }
  if (before.rlim_cur >= numbers) return;
  const rlimit raised{numbers, std::max<rlim_t>(before.rlim_max, numbers)};
  if (::setrlimit(RLIMIT_NOFILE, &raised) == 0) return;
  throw SysError("make room for " + std::to_string(numbers) +
                     " descriptors without CAP_SYS_RESOURCE (the hard limit is " +
                     std::to_string(before.rlim_max) + ", LimitNOFILE= of the daemon's unit)",
                 errno);
}

void check_descriptor_image(const GroupImage& image) {
  const size_t files = image.open_files.size();
  for (const ProcessImage& process : image.processes) {
    if (process.file_table >= image.file_tables.size()) {
      throw FormatError("a process has no descriptor table");
    }
  }
  for (const FileTableImage& table : image.file_tables) {
    int last = -1;
    for (const DescriptorImage& descriptor : table.descriptors) {
      if (descriptor.fd <= last || descriptor.open_file >= files) {
        throw FormatError("a descriptor table is damaged");
      }
      last = descriptor.fd;
    }
  }
  for (const OpenFileImage& file : image.open_files) {
    const bool bad_watch = std::any_of(file.watches.begin(), file.watches.end(), [&](auto& watch) {
      return watch.fd < 0 || (watch.target >= files && watch.target != kNoOpenFile);
    });
    if (bad_watch) throw FormatError("an epoll watches an unknown file");
  }
}

std::vector<QueuedLock> install_descriptors(const PromoteInput& input,
                                            std::span<ReplicaProcess* const> processes) {
  const GroupImage& image = *input.image;
  check_descriptor_image(image);
  const OpenFiles files(input);
  std::vector<bool> charged(image.open_files.size(), false);
  for (uint32_t table = 0; table < image.file_tables.size(); ++table) {
    const auto& descriptors = image.file_tables[table].descriptors;
    std::vector<uint32_t> charge;
    for (const DescriptorImage& descriptor : descriptors) {
      if (charged[descriptor.open_file]) continue;
      charged[descriptor.open_file] = true;
      charge.push_back(descriptor.open_file);
    }
    TableInstaller installer(image, table, files, process_with(image, table, processes));
    installer.take_charge_of(std::move(charge));
    installer.install();
  }
  return set_posix_locks(image, processes);
}

void restore_descriptors(const PromoteInput& input, std::span<ReplicaProcess* const> processes) {
  // A lock that somebody holds is no reason to stay dead.
  (void)install_descriptors(input, processes);
}

void check_files_unchanged(const GroupImage& image) {
  for (const OpenFileImage& file : image.open_files) {
    const bool written = (file.flags & O_ACCMODE) != O_RDONLY && (file.flags & O_PATH) == 0;
    if (file.kind != OpenFileKind::kRegular || !written || file.identity.inode == 0) continue;
    check_file(file.path, file.identity, file.mode & S_IFMT);
  }
  for (const MappedFileImage& file : image.mapped_files) {
    if (!file.times_tell) {
      throw SysError("memory shared through a file may have changed since the epoch, in", ESTALE,
                     on_path(file.path));
    }
    check_file(file.path, file.identity, S_IFREG);
  }
}

}  // namespace replpage
