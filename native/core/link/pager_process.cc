#include "core/link/pager_process.h"

#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <system_error>
#include <thread>

#include "core/base/sys_error.h"
#include "core/link/channel_child.h"

namespace replpage {
namespace {

// On a thread of its own: one that hangs in the kernel ends when the kernel lets it go.
void reap(UniqueFd pidfd) noexcept {
  try {
    std::thread([fd = std::move(pidfd)] {
      siginfo_t info{};
      while (::waitid(P_PIDFD, static_cast<id_t>(fd.get()), &info, WEXITED) != 0 &&
             errno == EINTR) {
      }
    }).detach();
  } catch (const std::system_error&) {
    // No thread to be had: it stays in the process table until we end.
  }
}

}  // namespace

PagerProcess PagerProcess::start(const std::string& executable) {
  ChannelChild child = start_with_channel(executable, "--channel");
  UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, child.pid, 0)));
  if (!pidfd.valid()) {
    const SysError error = SysError::from_errno("pidfd_open", on_pid(child.pid));
    ::kill(child.pid, SIGKILL);
    ::waitpid(child.pid, nullptr, 0);
    throw error;
  }
  return {child.pid, std::move(pidfd), Channel(std::move(child.channel))};
}

PagerProcess& PagerProcess::operator=(PagerProcess&& other) noexcept {
  end();
  pid_ = other.pid_;
  pidfd_ = std::move(other.pidfd_);
  channel_ = std::move(other.channel_);
  return *this;
}

PagerProcess::~PagerProcess() { end(); }

void PagerProcess::end() noexcept {
  if (!pidfd_.valid()) return;
  (void)::syscall(SYS_pidfd_send_signal, pidfd_.get(), SIGKILL, nullptr, 0);
  reap(std::move(pidfd_));
}

}  // namespace replpage
