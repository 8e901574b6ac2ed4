// Takes the open files of a frozen or dying group, each once.
#include <sys/syscall.h>
#include <unistd.h>

#include "core/base/sys_error.h"
#include "core/image/descriptor_capture.h"

namespace replpage {
namespace {

// Which kOutsideStream and kPidFd are watched by an epoll of the group.
std::vector<bool> watched_files(const GroupImage& image) {
  std::vector<bool> watched(image.open_files.size(), false);
  for (const OpenFileImage& file : image.open_files) {
    for (const EpollWatch& watch : file.watches) {
      if (watch.target < watched.size()) watched[watch.target] = true;
    }
  }
  return watched;
}

bool replaced_anyway(OpenFileKind kind) {
  return kind == OpenFileKind::kOutsideStream || kind == OpenFileKind::kPidFd;
}

}  // namespace

std::vector<UniqueFd> DescriptorCapture::take(const DescriptorCaptureInput& input,
                                              const GroupImage& image) {
  std::vector<UniqueFd> taken(image.open_files.size());
  const std::vector<bool> watched = watched_files(image);
  std::vector<bool> done(image.file_tables.size(), false);
  const size_t processes = std::min(input.processes.size(), image.processes.size());
  for (size_t i = 0; i < processes; ++i) {
    const uint32_t table = image.processes[i].file_table;
    if (table >= done.size() || done[table]) continue;
    const UniqueFd pidfd(
        static_cast<int>(::syscall(SYS_pidfd_open, input.processes[i].host_pid, 0)));
    if (!pidfd.valid()) continue;  // another process that shares the table may still be there
    done[table] = true;
    for (const DescriptorImage& descriptor : image.file_tables[table].descriptors) {
      const uint32_t position = descriptor.open_file;
      if (position >= taken.size() || taken[position].valid()) continue;
      if (replaced_anyway(image.open_files[position].kind) && !watched[position]) continue;
      taken[position].reset(
          static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd.get(), descriptor.fd, 0)));
    }
  }
  return taken;
}

}  // namespace replpage
