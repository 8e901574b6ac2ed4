#include "core/capture/pager_process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <system_error>
#include <thread>

#include "core/base/sys_error.h"

namespace replpage {
namespace {

constexpr int kChannelNumber = 3;  // in the started process
// Above what a dup2 to kChannelNumber could overwrite.
constexpr int kLowestSource = 16;

void check(int error) {
  if (error != 0) throw SysError("prepare the pager's start", error);
}

// What the child has of us: its channel, and the usual treatment of signals.
class ChildSetup {
 public:
  explicit ChildSetup(int channel) {
    check(::posix_spawn_file_actions_init(&actions_));
    check(::posix_spawnattr_init(&attributes_));
    sigset_t none;
    sigset_t all;
    ::sigemptyset(&none);
    ::sigfillset(&all);
    check(::posix_spawnattr_setsigmask(&attributes_, &none));
    check(::posix_spawnattr_setsigdefault(&attributes_, &all));
    check(::posix_spawnattr_setflags(&attributes_, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF));
    for (const int standard : {0, 1, 2}) {
      check(::posix_spawn_file_actions_addopen(&actions_, standard, "/dev/null", O_RDWR, 0));
    }
    check(::posix_spawn_file_actions_adddup2(&actions_, channel, kChannelNumber));
    check(::posix_spawn_file_actions_addclosefrom_np(&actions_, kChannelNumber + 1));
  }
  ~ChildSetup() {
    ::posix_spawn_file_actions_destroy(&actions_);
    ::posix_spawnattr_destroy(&attributes_);
  }
  ChildSetup(const ChildSetup&) = delete;
  ChildSetup& operator=(const ChildSetup&) = delete;

  pid_t start(const std::string& executable) {
    std::string path = executable;
    std::string option = "--channel";
    std::string number = std::to_string(kChannelNumber);
    std::string locale = "LC_ALL=C";
    std::array<char*, 4> arguments{path.data(), option.data(), number.data(), nullptr};
    std::array<char*, 2> environment{locale.data(), nullptr};
    pid_t child = 0;
    const int error = ::posix_spawn(&child, path.c_str(), &actions_, &attributes_, arguments.data(),
                                    environment.data());
    if (error != 0) throw SysError("start the pager", error, on_path(executable));
    return child;
  }

 private:
  posix_spawn_file_actions_t actions_{};
  posix_spawnattr_t attributes_{};
};

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
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
    throw SysError::from_errno("socketpair for the pager");
  }
  UniqueFd ours(ends[0]);
  const UniqueFd theirs(ends[1]);
  const UniqueFd high(::fcntl(theirs.get(), F_DUPFD_CLOEXEC, kLowestSource));
  if (!high.valid()) throw SysError::from_errno("duplicate the pager's channel");
  const pid_t child = ChildSetup(high.get()).start(executable);
  // Nobody else reaps it, so the number is still its own.
  UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, child, 0)));
  if (!pidfd.valid()) {
    const SysError error = SysError::from_errno("pidfd_open", on_pid(child));
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    throw error;
  }
  return {child, std::move(pidfd), Channel(std::move(ours))};
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
