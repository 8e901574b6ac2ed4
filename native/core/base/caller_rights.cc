#include "core/base/caller_rights.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <exception>
#include <thread>

#include "core/base/proc_stat.h"
#include "core/base/sys_error.h"

namespace replpage {
namespace {

// Raw calls change the calling thread only; libc's wrappers would change every thread.
void must(const char* what, long result) {
  if (result < 0) throw SysError::from_errno(what);
}

void take_groups(const CallerRights& rights) {
  must("setgroups", ::syscall(SYS_setgroups, rights.groups.size(), rights.groups.data()));
}

template <class Work>
void in_own_thread(Work work) {
  std::exception_ptr failure;
  std::thread thread([&] {
    try {
      work();
    } catch (...) {
      failure = std::current_exception();
    }
  });
  thread.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace

UniqueFd open_with_rights(const std::string& path, int flags, int mode,
                          const CallerRights& rights) {
  UniqueFd opened;
  in_own_thread([&] {
    take_groups(rights);
    ::syscall(SYS_setfsgid, rights.gid);
    ::syscall(SYS_setfsuid, rights.uid);
    // A FIFO that nobody reads, or a line that is down, would keep us waiting for ever.
    opened.reset(::open(path.c_str(), flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, mode));
    if (!opened.valid()) throw SysError::from_errno("open", on_path(path));
    if ((flags & O_NONBLOCK) == 0 && ::fcntl(opened.get(), F_SETFL, flags & ~O_NONBLOCK) != 0) {
      throw SysError::from_errno("fcntl", on_path(path));
    }
  });
  return opened;
}

bool may_trace(pid_t pid, const CallerRights& rights) {
  const UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!pidfd.valid()) throw SysError::from_errno("pidfd_open", on_pid(pid));
  bool allowed = false;
  in_own_thread([&] {
    take_groups(rights);
    must("setresgid", ::syscall(SYS_setresgid, rights.gid, rights.gid, rights.gid));
    must("setresuid", ::syscall(SYS_setresuid, rights.uid, rights.uid, rights.uid));
    // The kernel looks at the rights before the number: EBADF means that they sufficed.
    const long result = ::syscall(SYS_pidfd_getfd, pidfd.get(), -1, 0);
    if (result >= 0) ::close(static_cast<int>(result));
    allowed = result >= 0 || errno == EBADF;
    if (!allowed && errno == ESRCH) throw SysError::from_errno("pidfd_getfd", on_pid(pid));
  });
  return allowed;
}

std::optional<uint64_t> start_time_of(pid_t pid) {
  const auto stat = ProcStat::of(pid);
  if (!stat) return std::nullopt;
  return (*stat)[ProcStat::kStartTime];
}

}  // namespace replpage
