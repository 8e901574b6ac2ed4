#include "core/restore/open_files.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <string_view>
#include <utility>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/restore/descriptors.h"
#include "core/restore/process_state.h"

namespace replpage {
namespace {

constexpr uint32_t kStatusFlags = O_APPEND | O_NONBLOCK | O_DIRECT | O_NOATIME;

std::string describe(const OpenFileImage& file) {
  return "open file of kind " + std::to_string(static_cast<int>(file.kind)) +
         (file.path.empty() ? "" : " " + file.path);
}

// Replaced in every replica, handed over or not: where standard output goes is decided by --stdio,
// a pidfd must refer to the replica's process.
bool always_made(OpenFileKind kind) {
  return kind == OpenFileKind::kOutsideStream || kind == OpenFileKind::kPidFd;
}

// Kinds whose handed file serves an older epoch too: its state is in the file system or the
// network, or can be set back. All others are made anew from the epoch's image.
bool serves_old_epoch(const OpenFileImage& file) {
  switch (file.kind) {
    case OpenFileKind::kRegular:
    case OpenFileKind::kDevice:
    case OpenFileKind::kDeletedFile:
    case OpenFileKind::kUdpSocket:
    case OpenFileKind::kNetlinkSocket:
      return true;
    case OpenFileKind::kTcpSocket:
    case OpenFileKind::kUnixSocket:
      return file.socket.listening || (!file.socket.connected && !file.outside);
    default:
      return false;
  }
}

// `/proc/PID...` of a process or thread of the group, by the number that the group sees. Such a
// file tells of the very task that it was opened for, which is about to end, and then fails with
// ESRCH.
bool tells_of(const GroupImage& image, const OpenFileImage& file) {
  constexpr std::string_view kProc = "/proc/";
  if (file.kind != OpenFileKind::kRegular || !file.path.starts_with(kProc)) return false;
  const std::string_view rest = std::string_view(file.path).substr(kProc.size());
  int32_t number = 0;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), number);
  if (error != std::errc() || (end != rest.data() + rest.size() && *end != '/')) return false;
  const auto has_number = [number](const auto& task) { return task.tid == number; };
  return std::any_of(
      image.processes.begin(), image.processes.end(), [&](const ProcessImage& process) {
        return std::any_of(process.threads.begin(), process.threads.end(), has_number);
      });
}

void restore_file_locks(int fd, const OpenFileImage& file) {
  for (const FileLock& lock : file.locks) {
    if (lock.kind == FileLock::Kind::kFlock) {
      if (::flock(fd, (lock.exclusive ? LOCK_EX : LOCK_SH) | LOCK_NB) != 0) {
        throw SysError::from_errno("flock", on_path(file.path));
      }
    } else if (lock.kind == FileLock::Kind::kOpenFile) {
      struct flock range = lock_range(lock);
      if (::fcntl(fd, F_OFD_SETLK, &range) != 0) {
        throw SysError::from_errno("lock an open file", on_path(file.path));
      }
    }
  }
}

}  // namespace

OpenFiles::OpenFiles(const PromoteInput& input)
    : input_(input),
      files_(input.image->open_files),
      needed_(files_.size(), false),
      ready_(files_.size()) {
  for (const FileTableImage& table : input.image->file_tables) {
    for (const DescriptorImage& descriptor : table.descriptors) {
      needed_[descriptor.open_file] = true;
    }
  }
  for (uint32_t i = 0; i < files_.size(); ++i) {
    if (needed(i)) adopt(i);
  }
  make_paired_sockets();
  // Connections last: one that does not share its port would keep the listening socket from it.
  for (const bool connections : {false, true}) {
    for (uint32_t i = 0; i < files_.size(); ++i) {
      const bool connection =
          files_[i].kind == OpenFileKind::kTcpSocket && files_[i].socket.connected;
      if (needed(i) && ready_[i].fd < 0 && connection == connections) make(i);
    }
  }
  if (input.address != nullptr) input.address->open();
}

UniqueFd OpenFiles::tcp(const OpenFileImage& file) {
  if (!file.socket.connected || file.socket.queue.empty()) return recreate::tcp(file);
  // Of an older epoch its peer has seen what the replica has not.
  if (input_.exact) {
    try {
      return input_.address ? input_.address->connection(file) : recreate::tcp(file);
    } catch (const SysError&) {  // it is lost, and nothing else
    }
  }
  OpenFileImage lost = file;
  lost.socket.queue.clear();
  return recreate::tcp(lost);
}

// What was handed is what now has that number in the dying process: for an older epoch it may be
// another file by now.
bool OpenFiles::can_adopt(uint32_t position) const {
  const OpenFileImage& file = files_[position];
  if (always_made(file.kind) || tells_of(*input_.image, file)) return false;
  // A memfd that is handed is the object that the replica maps, opened by the builder.
  if (input_.exact || file.kind == OpenFileKind::kMemfd) return true;
  if (!serves_old_epoch(file)) return false;
  struct stat status {};
  if (::fstat(input_.handed[position].get(), &status) != 0) return false;
  switch (file.kind) {
    case OpenFileKind::kRegular:
      return S_ISSOCK(status.st_mode) == S_ISSOCK(file.mode) &&
             (file.identity.inode == 0 ||
              (status.st_dev == file.identity.device && status.st_ino == file.identity.inode));
    case OpenFileKind::kDeletedFile:
      return status.st_dev == file.identity.device && status.st_ino == file.identity.inode &&
             static_cast<uint64_t>(status.st_size) == file.identity.size &&
             status.st_ctim.tv_sec * 1'000'000'000 + status.st_ctim.tv_nsec ==
                 file.identity.change_time_ns;
    case OpenFileKind::kDevice:
      return S_ISCHR(status.st_mode);
    default:
      return S_ISSOCK(status.st_mode) && status.st_ino == file.object;
  }
}

void OpenFiles::adopt(uint32_t position) {
  if (position >= input_.handed.size() || !input_.handed[position].valid()) return;
  const int fd = input_.handed[position].get();
  if (!can_adopt(position)) {
    if (input_.exact) ready_[position].watched_old = fd;
    return;
  }
  ready_[position] = {.fd = fd, .handed = true, .watched_old = -1};
  if (input_.exact) return;
  const OpenFileImage& file = files_[position];
  const bool seekable =
      file.kind == OpenFileKind::kRegular || file.kind == OpenFileKind::kDeletedFile;
  if (seekable && (file.flags & O_PATH) == 0) {
    ::lseek(fd, static_cast<off_t>(file.position), SEEK_SET);
  }
  if ((file.flags & O_PATH) == 0) {
    ::fcntl(fd, F_SETFL, static_cast<int>(file.flags & (kStatusFlags | O_ASYNC)));
  }
}

void OpenFiles::make(uint32_t position) {
  const OpenFileImage& file = files_[position];
  try {
    settle(position, make_by_kind(position), true);
  } catch (const SysError& error) {
    // Of a thread that has ended, as a rule: the old one says so, too.
    if (ready_[position].watched_old >= 0 && tells_of(*input_.image, file)) {
      ready_[position] = {.fd = ready_[position].watched_old, .handed = true, .watched_old = -1};
      return;
    }
    throw SysError("restore " + describe(file) + ": " + error.operation(), error.error(),
                   error.object());
  }
}

void OpenFiles::settle(uint32_t position, UniqueFd made, bool set_position) {
  const OpenFileImage& file = files_[position];
  if ((file.flags & O_PATH) == 0) {
    if (set_position && file.position != 0) {
      ::lseek(made.get(), static_cast<off_t>(file.position), SEEK_SET);
    }
    const int flags = ::fcntl(made.get(), F_GETFL);
    const int wanted =
        (flags & ~static_cast<int>(kStatusFlags)) | static_cast<int>(file.flags & kStatusFlags);
    if (file.kind != OpenFileKind::kOutsideStream && flags != wanted &&
        ::fcntl(made.get(), F_SETFL, wanted) != 0) {
      throw SysError::from_errno("set status flags", on_path(file.path));
    }
    restore_file_locks(made.get(), file);
  }
  ready_[position].fd = made.get();
  made_.push_back(std::move(made));
}

UniqueFd OpenFiles::make_by_kind(uint32_t position) {
  const OpenFileImage& file = files_[position];
  switch (file.kind) {
    case OpenFileKind::kRegular:
    case OpenFileKind::kDevice:
    case OpenFileKind::kFifo:
      return recreate::by_path(file, input_.keep_files);
    case OpenFileKind::kDeletedFile:
      return make_deleted(file);
    case OpenFileKind::kPipe:
      return make_pipe_end(file);
    case OpenFileKind::kEventFd:
      return recreate::event_counter(file);
    case OpenFileKind::kTimerFd:
      return recreate::timer(file, time_since_capture_ns(input_.image->processes.front()));
    case OpenFileKind::kSignalFd:
      return recreate::signal_set(file);
    case OpenFileKind::kEpoll: {
      UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
      if (!epoll.valid()) throw SysError::from_errno("epoll_create1");
      return epoll;
    }
    case OpenFileKind::kInotify:
      return recreate::notifier(file);
    case OpenFileKind::kMemfd:
      throw SysError("find the shared object of a memfd", ENOENT, on_path(file.path));
    case OpenFileKind::kUnixSocket:
      return recreate::unix_single(file);
    case OpenFileKind::kTcpSocket:
      return tcp(file);
    case OpenFileKind::kUdpSocket:
      return recreate::udp(file);
    case OpenFileKind::kNetlinkSocket:
      return recreate::netlink(file);
    case OpenFileKind::kOutsideStream:
      return make_outside_stream(file);
    case OpenFileKind::kPidFd:
      return recreate::process_handle(file);
    case OpenFileKind::kUnsupported:
      throw SysError("recreate what can only be handed over", EOPNOTSUPP, on_path(file.path));
  }
  throw FormatError("image has an open file of unknown kind");
}

void OpenFiles::make_paired_sockets() {
  std::map<uint64_t, uint32_t> by_inode;
  for (uint32_t i = 0; i < files_.size(); ++i) {
    if (files_[i].kind == OpenFileKind::kUnixSocket) by_inode[files_[i].object] = i;
  }
  for (uint32_t i = 0; i < files_.size(); ++i) {
    const OpenFileImage& file = files_[i];
    const bool stream = file.socket.type != SOCK_DGRAM;
    if (file.kind != OpenFileKind::kUnixSocket || !file.socket.connected || file.outside ||
        !needed(i) || ready_[i].fd >= 0) {
      continue;
    }
    const auto peer = by_inode.find(file.socket.peer_object);
    const bool mutual = peer != by_inode.end() && peer->second != i &&
                        ready_[peer->second].fd < 0 &&
                        files_[peer->second].socket.peer_object == file.object;
    if (!stream && !mutual) continue;  // a datagram socket connected to a named one: by address
    UniqueFd one;
    UniqueFd other;
    recreate::unix_pair(file, mutual ? &files_[peer->second] : nullptr, one, other);
    settle(i, std::move(one), false);
    if (mutual) settle(peer->second, std::move(other), false);
  }
}

UniqueFd OpenFiles::make_outside_stream(const OpenFileImage& file) const {
  const bool input = (file.flags & O_ACCMODE) == O_RDONLY;
  if (input || !input_.outside_stream.valid()) {
    return open_path("/dev/null", input ? O_RDONLY : O_RDWR);
  }
  // Descriptions of their own where that works (a regular file), so that what a program does to
  // the flags of one stream does not reach the others.
  UniqueFd own(::open(("/proc/self/fd/" + std::to_string(input_.outside_stream.get())).c_str(),
                      O_WRONLY | O_APPEND | O_CLOEXEC | O_NOCTTY));
  if (!own.valid()) own.reset(::fcntl(input_.outside_stream.get(), F_DUPFD_CLOEXEC, 0));
  if (!own.valid()) throw SysError::from_errno("duplicate the outside stream");
  return own;
}

// Both ends are made at once. The first description of an end is the pipe's own, later ones (the
// pipe opened again through /proc) are opened again. Where only one end is in the group, the other
// goes with this object.
UniqueFd OpenFiles::make_pipe_end(const OpenFileImage& file) {
  auto [at, added] = pipes_.try_emplace(file.object);
  Pipe& pipe = at->second;
  if (added) {
    const OpenFileImage* reader = &file;
    for (const OpenFileImage& other : files_) {
      const bool same = other.kind == OpenFileKind::kPipe && other.object == file.object;
      if (same && (other.flags & O_ACCMODE) != O_WRONLY) reader = &other;
    }
    recreate::pipe(*reader, pipe.read, pipe.write);
  }
  const bool writing = (file.flags & O_ACCMODE) == O_WRONLY;
  const UniqueFd& end = writing ? pipe.write : pipe.read;
  if (std::exchange(writing ? pipe.write_given : pipe.read_given, true)) {
    return recreate::reopened(end.get(), (file.flags & O_ACCMODE) | O_NONBLOCK);
  }
  UniqueFd own(::fcntl(end.get(), F_DUPFD_CLOEXEC, 0));
  if (!own.valid()) throw SysError::from_errno("duplicate an end of a pipe");
  return own;
}

UniqueFd OpenFiles::make_deleted(const OpenFileImage& file) {
  UniqueFd& nameless = nameless_[file.object];
  if (!nameless.valid()) nameless = recreate::nameless_file(file);
  // One made with O_TMPFILE says O_DIRECTORY too, which would be asked of it now.
  const uint32_t made_as = (file.flags & O_TMPFILE) == O_TMPFILE ? O_TMPFILE : 0;
  return recreate::reopened(nameless.get(), file.flags & ~made_as);
}

}  // namespace replpage
