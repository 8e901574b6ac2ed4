#include "core/image/file_content.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <cstdio>
#include <cstring>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"

namespace replpage {
namespace {

// Mount points of a file system in the process's mount namespace, from lines
// "36 35 98:0 /root /mount/point options ..." (proc(5), mountinfo).
std::vector<std::string> mount_points(pid_t host_pid, uint64_t device) {
  std::vector<std::string> points;
  const auto text = read_proc("/proc/" + std::to_string(host_pid) + "/mountinfo");
  if (!text) return points;
  for (size_t at = 0; at < text->size();) {
    const size_t end = text->find('\n', at);
    const std::string line = text->substr(at, end - at);
    unsigned device_major = 0;
    unsigned device_minor = 0;
    char point[4096];
    if (std::sscanf(line.c_str(), "%*d %*d %u:%u %*s %4095s", &device_major, &device_minor,
                    point) == 3 &&
        makedev(device_major, device_minor) == device) {
      points.emplace_back(point);
    }
    if (end == std::string::npos) break;
    at = end + 1;
  }
  return points;
}

}  // namespace

void PipeReader::make_room(int bytes) {
  if (!reader_.valid()) {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) throw SysError::from_errno("pipe2");
    reader_.reset(ends[0]);
    writer_.reset(ends[1]);
    room_ = ::fcntl(writer_.get(), F_GETPIPE_SZ);
  }
  if (bytes <= room_) return;
  const int got = ::fcntl(writer_.get(), F_SETPIPE_SZ, bytes);
  if (got < 0) throw SysError::from_errno("grow a pipe");
  room_ = got;
}

void PipeReader::read(int reading_end, bool packets, OpenFileImage& file) {
  file.content.clear();
  file.socket.queue.clear();
  file.pipe_size = ::fcntl(reading_end, F_GETPIPE_SZ);
  int waiting = 0;
  if (file.pipe_size < 0 || ::ioctl(reading_end, FIONREAD, &waiting) != 0) {
    throw SysError::from_errno("ask a pipe for its size");
  }
  if (waiting == 0) return;
  make_room(file.pipe_size);
  const auto limit = static_cast<size_t>(waiting);
  const ssize_t copied = ::tee(reading_end, writer_.get(), limit, SPLICE_F_NONBLOCK);
  if (copied < 0 && errno != EAGAIN) throw SysError::from_errno("tee a pipe");
  for (ssize_t left = copied; left > 0;) {
    Bytes piece(static_cast<size_t>(left));
    const ssize_t got = ::read(reader_.get(), piece.data(), piece.size());
    if (got <= 0) throw SysError::from_errno("read a pipe's copy");
    piece.resize(static_cast<size_t>(got));
    left -= got;
    if (packets) {
      file.socket.queue.push_back(std::move(piece));
    } else {
      file.content.insert(file.content.end(), piece.begin(), piece.end());
    }
  }
  if (copied < waiting) throw SysError("copy a pipe's content", EMSGSIZE);
}

std::optional<Bytes> read_whole_file(int file, size_t bytes_max) {
  const std::string path = "/proc/self/fd/" + std::to_string(file);
  const UniqueFd own = open_path(path, O_RDONLY);  // a position of its own
  struct stat status {};
  if (::fstat(own.get(), &status) != 0) throw SysError::from_errno("fstat", on_path(path));
  if (static_cast<uint64_t>(status.st_size) > bytes_max) return std::nullopt;
  Bytes content(static_cast<size_t>(status.st_size));
  size_t at = 0;
  while (at < content.size()) {
    const ssize_t got = ::read(own.get(), content.data() + at, content.size() - at);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw SysError::from_errno("read", on_path(path));
    if (got == 0) break;
    at += static_cast<size_t>(got);
  }
  content.resize(at);
  return content;
}

std::optional<std::string> path_of_watch(pid_t host_pid, const InotifyEntry& entry) {
  if (entry.handle.empty()) return std::nullopt;
  Bytes handle(sizeof(file_handle) + entry.handle.size());
  const file_handle head{static_cast<unsigned>(entry.handle.size()), entry.handle_type, {}};
  std::memcpy(handle.data(), &head, sizeof head);
  std::memcpy(handle.data() + sizeof head, entry.handle.data(), entry.handle.size());
  const std::string root = "/proc/" + std::to_string(host_pid) + "/root";
  for (const std::string& point : mount_points(host_pid, entry.device)) {
    const UniqueFd mount(::open((root + point).c_str(), O_RDONLY | O_CLOEXEC));
    if (!mount.valid()) continue;
    const UniqueFd file(::open_by_handle_at(
        mount.get(), reinterpret_cast<file_handle*>(handle.data()), O_PATH | O_CLOEXEC));
    if (!file.valid()) continue;
    auto path = read_link("/proc/self/fd/" + std::to_string(file.get()));
    if (path && path->starts_with('/') && !path->ends_with(" (deleted)")) return path;
  }
  return std::nullopt;
}

}  // namespace replpage
