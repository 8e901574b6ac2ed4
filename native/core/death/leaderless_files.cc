#include "core/death/leaderless_files.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

namespace replpage {
namespace {

constexpr unsigned kPidfdThread = O_EXCL;  // PIDFD_THREAD, since Linux 6.9

bool is_socket(OpenFileKind kind) {
  return kind == OpenFileKind::kTcpSocket || kind == OpenFileKind::kUdpSocket ||
         kind == OpenFileKind::kUnixSocket;
}

// An established connection is another matter: its peer has seen what the epoch has not.
bool is_same_unconnected(const UniqueFd& fd, const OpenFileImage& then) {
  struct stat status {};
  sockaddr_storage peer{};
  socklen_t size = sizeof peer;
  return fd.valid() && !then.socket.connected && ::fstat(fd.get(), &status) == 0 &&
         S_ISSOCK(status.st_mode) && status.st_ino == then.object &&
         ::getpeername(fd.get(), reinterpret_cast<sockaddr*>(&peer), &size) != 0 &&
         errno == ENOTCONN;
}

void take_from_thread(pid_t tid, const GroupImage& then, const FileTableImage& table,
                      std::vector<UniqueFd>& matched) {
  const UniqueFd thread(static_cast<int>(::syscall(SYS_pidfd_open, tid, kPidfdThread)));
  if (!thread.valid()) return;
  for (const DescriptorImage& descriptor : table.descriptors) {
    const OpenFileImage& file = then.open_files.at(descriptor.open_file);
    if (!is_socket(file.kind) || matched.at(descriptor.open_file).valid()) continue;
    UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_getfd, thread.get(), descriptor.fd, 0)));
    if (is_same_unconnected(fd, file)) matched[descriptor.open_file] = std::move(fd);
  }
}

}  // namespace

void take_leaderless_sockets(const GroupContext& context, std::vector<UniqueFd>& matched) {
  const GroupImage& then = context.last_image;
  for (const ProcessImage& process : then.processes) {
    const auto found = context.tree->processes().find(context.capture->host_pid_of(process.pid));
    if (found == context.tree->processes().end()) continue;
    const auto& threads = found->second.threads;
    if (threads.empty() || threads.contains(found->first)) continue;
    if (process.file_table >= then.file_tables.size()) continue;
    take_from_thread(threads.begin()->first, then, then.file_tables[process.file_table], matched);
  }
}

}  // namespace replpage
