// Recreates files with a path, deleted files, pipes, and the small anonymous kinds.
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>

#include <algorithm>

#include "core/base/clock.h"
#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/restore/open_files.h"

namespace replpage::recreate {
namespace {

constexpr uint64_t kSecond = 1'000'000'000;
// Numbers of inotify watches are handed out in order; a higher one cannot be reached by trying.
constexpr int32_t kWatchDescriptorMax = 100'000;
constexpr unsigned long kSetTicks = _IOW('T', 0, uint64_t);  // TFD_IOC_SET_TICKS

// What open(2) would act on rather than remember.
constexpr uint32_t kActingFlags =
    O_CREAT | O_EXCL | O_TRUNC | O_NOFOLLOW | (O_TMPFILE & ~O_DIRECTORY);

timespec to_timespec(uint64_t ns) {
  return {static_cast<time_t>(ns / kSecond), static_cast<long>(ns % kSecond)};
}

void write_all(int fd, const Bytes& content) {
  for (size_t at = 0; at < content.size();) {
    const ssize_t put = ::write(fd, content.data() + at, content.size() - at);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) throw SysError::from_errno("write restored content");
    at += static_cast<size_t>(put);
  }
}

// A named pipe opened for writing waits for a reader, unless one is there for the moment.
UniqueFd open_fifo(int named, uint32_t flags) {
  const UniqueFd company = reopened(named, O_RDWR | O_NONBLOCK);
  return reopened(named, flags | O_NONBLOCK);
}

// Its pidfd is that of a process which has ended.
UniqueFd ended_process_handle() {
  const pid_t child = ::fork();
  if (child < 0) throw SysError::from_errno("fork");
  if (child == 0) {
    ::pause();
    ::_exit(0);
  }
  UniqueFd handle(static_cast<int>(::syscall(SYS_pidfd_open, child, 0)));
  const int error = errno;
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, __WALL);
  if (!handle.valid()) throw SysError("pidfd_open", error, on_pid(child));
  return handle;
}

}  // namespace

UniqueFd reopened(int file, uint32_t flags) {
  return open_path("/proc/self/fd/" + std::to_string(file),
                   static_cast<int>((flags & ~kActingFlags) | O_NOCTTY));
}

UniqueFd by_path(const OpenFileImage& file, bool keep_files) {
  const bool path_only = (file.flags & O_PATH) != 0;
  // Looked at before it is opened: opening the wrong file could block or act.
  UniqueFd found(
      ::open(file.path.c_str(), O_PATH | O_CLOEXEC | static_cast<int>(file.flags & O_NOFOLLOW)));
  if (!found.valid()) {
    if (file.outside) return open_path("/dev/null", O_RDWR);  // a terminal that is gone
    throw SysError::from_errno("open", on_path(file.path));
  }
  struct stat status {};
  if (::fstat(found.get(), &status) != 0) throw SysError::from_errno("fstat", on_path(file.path));
  const bool same = file.identity.inode == 0 ||
                    (status.st_dev == file.identity.device && status.st_ino == file.identity.inode);
  if (!same && !keep_files)
    throw SysError("find the file of the epoch", ESTALE, on_path(file.path));
  if (path_only) return found;
  if (file.kind == OpenFileKind::kFifo) return open_fifo(found.get(), file.flags);
  if (file.kind == OpenFileKind::kDevice && !S_ISCHR(status.st_mode)) {
    throw SysError("find the device of the epoch", ESTALE, on_path(file.path));
  }
  if (!file.outside) return reopened(found.get(), file.flags);
  try {
    return reopened(found.get(), file.flags | O_NONBLOCK);
  } catch (const SysError&) {
    return open_path("/dev/null", O_RDWR);  // /dev/tty without a terminal
  }
}

UniqueFd event_counter(const OpenFileImage& file) {
  UniqueFd made(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | (file.semaphore ? EFD_SEMAPHORE : 0)));
  if (!made.valid()) throw SysError::from_errno("eventfd");
  if (file.counter != 0 && ::write(made.get(), &file.counter, 8) != 8) {
    throw SysError::from_errno("set an eventfd's counter");
  }
  return made;
}

UniqueFd timer(const OpenFileImage& file, uint64_t since_ns) {
  UniqueFd made(::timerfd_create(file.clock, TFD_CLOEXEC | TFD_NONBLOCK));
  if (!made.valid()) throw SysError::from_errno("timerfd_create");
  if (file.timer_value_ns == 0 && file.timer_ticks == 0) return made;
  // The deadline stays what it was, since the program's clock went on, too.
  itimerspec setting{};
  setting.it_interval = to_timespec(file.timer_interval_ns);
  setting.it_value = to_timespec(file.timer_value_ns);
  uint64_t ticks = file.timer_ticks;
  int flags = 0;
  if (file.timer_value_ns != 0 && (file.clock == CLOCK_MONOTONIC || file.clock == CLOCK_BOOTTIME)) {
    setting.it_value = to_timespec(clock_ns(file.clock) - since_ns + file.timer_value_ns);
    flags = TFD_TIMER_ABSTIME;
    // Then it expires at once, which is overwritten below.
    if (ticks != 0 && file.timer_value_ns <= since_ns) ++ticks;
  }
  if (::timerfd_settime(made.get(), flags, &setting, nullptr) != 0) {
    throw SysError::from_errno("timerfd_settime");
  }
  if (ticks == 0 || ::ioctl(made.get(), kSetTicks, &ticks) == 0) return made;
  // A kernel without CONFIG_CHECKPOINT_RESTORE: let it expire once, at once.
  setting.it_value = to_timespec(1);
  if (::timerfd_settime(made.get(), 0, &setting, nullptr) != 0) {
    throw SysError::from_errno("timerfd_settime");
  }
  return made;
}

UniqueFd signal_set(const OpenFileImage& file) {
  const uint64_t mask = file.signal_mask;
  UniqueFd made(static_cast<int>(::syscall(SYS_signalfd4, -1, &mask, sizeof mask, O_CLOEXEC)));
  if (!made.valid()) throw SysError::from_errno("signalfd4");
  return made;
}

UniqueFd notifier(const OpenFileImage& file) {
  UniqueFd made(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
  if (!made.valid()) throw SysError::from_errno("inotify_init1");
  std::vector<const InotifyWatch*> order;
  for (const InotifyWatch& watch : file.notify_watches) order.push_back(&watch);
  std::sort(order.begin(), order.end(),
            [](auto* a, auto* b) { return a->descriptor < b->descriptor; });
  constexpr uint32_t kUserMask = IN_ALL_EVENTS | IN_ONESHOT | IN_EXCL_UNLINK;
  for (const InotifyWatch* watch : order) {
    for (;;) {
      const int got = ::inotify_add_watch(made.get(), watch->path.c_str(), watch->mask & kUserMask);
      if (got < 0) throw SysError::from_errno("inotify_add_watch", on_path(watch->path));
      if (got == watch->descriptor) break;
      if (got > watch->descriptor || watch->descriptor > kWatchDescriptorMax) {
        throw SysError("give an inotify watch its number", ERANGE, on_path(watch->path));
      }
      ::inotify_rm_watch(made.get(), got);
    }
  }
  // Removing watches queued IN_IGNORED events that the program never caused.
  alignas(inotify_event) char events[4096];
  while (::read(made.get(), events, sizeof events) > 0) {
  }
  return made;
}

UniqueFd process_handle(const OpenFileImage& file) {
  if (file.target_pid == 0) return ended_process_handle();
  UniqueFd made(static_cast<int>(
      ::syscall(SYS_pidfd_open, file.target_pid, file.flags & (O_NONBLOCK | O_EXCL))));
  if (!made.valid()) throw SysError::from_errno("pidfd_open", on_pid(file.target_pid));
  return made;
}

UniqueFd nameless_file(const OpenFileImage& file) {
  const std::string directory = file.path.substr(0, std::max<size_t>(file.path.rfind('/'), 1));
  UniqueFd made;
  for (const std::string& place : {directory, std::string("/tmp")}) {
    made.reset(::open(place.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, file.mode));
    if (made.valid()) break;
  }
  if (!made.valid()) throw SysError::from_errno("create a file without a name", on_path(directory));
  ::fchmod(made.get(), file.mode);
  write_all(made.get(), file.content);
  return made;
}

void pipe(const OpenFileImage& reader, UniqueFd& read_end, UniqueFd& write_end) {
  int ends[2];
  // Each write is a packet then; whether later ones are is set with the writing end's flags.
  const bool packets = !reader.socket.queue.empty();
  if (::pipe2(ends, O_CLOEXEC | O_NONBLOCK | (packets ? O_DIRECT : 0)) != 0) {
    throw SysError::from_errno("pipe2");
  }
  read_end.reset(ends[0]);
  write_end.reset(ends[1]);
  if (reader.pipe_size > 0 && reader.pipe_size != ::fcntl(ends[1], F_GETPIPE_SZ) &&
      ::fcntl(ends[1], F_SETPIPE_SZ, reader.pipe_size) < 0) {
    throw SysError::from_errno("set a pipe's size");
  }
  write_all(ends[1], reader.content);
  for (const Bytes& packet : reader.socket.queue) write_all(ends[1], packet);
}

}  // namespace replpage::recreate
