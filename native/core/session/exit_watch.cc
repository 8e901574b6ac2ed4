#include "core/session/exit_watch.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>

#include "core/base/proc_stat.h"
#include "core/base/sys_error.h"

namespace replpage {
namespace {

// struct pidfd_info and PIDFD_GET_INFO of linux/pidfd.h, which Debian 12's headers lack.
struct PidfdInfo {
  uint64_t mask = 0;
  uint64_t cgroup_id = 0;
  uint32_t ids[11] = {};  // pid, tgid, ppid and the user and group ids
  int32_t exit_code = 0;
  uint8_t later_versions[32] = {};
};
static_assert(offsetof(PidfdInfo, exit_code) == 60);
constexpr uint64_t kInfoExit = 1u << 3;
constexpr unsigned long kGetInfo = _IOWR(0xFF, 11, PidfdInfo);

// Known once the process has been reaped, since Linux 6.15.
std::optional<int> status_when_reaped(int pidfd) {
  PidfdInfo info;
  info.mask = kInfoExit;
  if (::ioctl(pidfd, kGetInfo, &info) != 0 || (info.mask & kInfoExit) == 0) return std::nullopt;
  return info.exit_code;
}

// The last field of /proc/PID/stat (proc(5)), which needs the right to trace the process.
std::optional<int> status_of_zombie(pid_t pid) {
  const auto stat = ProcStat::of(pid);
  if (!stat || stat->state() != 'Z') return std::nullopt;
  return static_cast<int>((*stat)[ProcStat::kExitCode]);
}

// A process that has ended is a zombie or was reaped, and may be reaped between two looks.
std::optional<int> wait_status_of(pid_t pid, int pidfd) {
  if (const auto status = status_when_reaped(pidfd)) return status;
  if (const auto status = status_of_zombie(pid)) return status;
  return status_when_reaped(pidfd);
}

}  // namespace

ExitWatch::ExitWatch(pid_t pid, std::function<void(std::optional<int>)> ended)
    : pid_(pid),
      pidfd_(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))),
      stop_(::eventfd(0, EFD_CLOEXEC)),
      ended_(std::move(ended)) {
  if (!pidfd_.valid()) throw SysError::from_errno("pidfd_open", on_pid(pid));
  if (!stop_.valid()) throw SysError::from_errno("eventfd");
  thread_ = std::thread([this] { watch(); });
}

ExitWatch::~ExitWatch() {
  ::eventfd_write(stop_.get(), 1);
  thread_.join();
}

void ExitWatch::watch() {
  pollfd watched[2] = {{pidfd_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}};
  while (::poll(watched, 2, -1) < 0 && errno == EINTR) {
  }
  if (watched[1].revents != 0) return;
  std::optional<int> status;
  try {
    status = wait_status_of(pid_, pidfd_.get());
  } catch (const std::exception&) {  // out of descriptors: taken for killed
  }
  ended_(status);
}

}  // namespace replpage
