#include "core/link/channel_child.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>

#include <array>

#include "core/base/sys_error.h"

namespace replpage {
namespace {

constexpr int kChannelNumber = 3;  // in the started process
// Above what a dup2 to kChannelNumber could overwrite.
constexpr int kLowestSource = 16;

void check(int error) {
  if (error != 0) throw SysError("prepare the start of a program", error);
}

// Attributes and actions of posix_spawn, freed at the end of the scope.
class SpawnPlan {
 public:
  explicit SpawnPlan(int channel) {
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
  ~SpawnPlan() {
    ::posix_spawn_file_actions_destroy(&actions_);
    ::posix_spawnattr_destroy(&attributes_);
  }
  SpawnPlan(const SpawnPlan&) = delete;
  SpawnPlan& operator=(const SpawnPlan&) = delete;

  pid_t start(const std::string& executable, std::string option) {
    std::string path = executable;
    std::string number = std::to_string(kChannelNumber);
    std::string locale = "LC_ALL=C";
    std::array<char*, 4> arguments{path.data(), option.data(), number.data(), nullptr};
    std::array<char*, 2> environment{locale.data(), nullptr};
    pid_t child = 0;
    const int error = ::posix_spawn(&child, path.c_str(), &actions_, &attributes_, arguments.data(),
                                    environment.data());
    if (error != 0) throw SysError("start", error, on_path(executable));
    return child;
  }

 private:
  posix_spawn_file_actions_t actions_{};
  posix_spawnattr_t attributes_{};
};

}  // namespace

ChannelChild start_with_channel(const std::string& executable, const char* option) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
    throw SysError::from_errno("socketpair for a channel");
  }
  UniqueFd ours(ends[0]);
  const UniqueFd theirs(ends[1]);
  const UniqueFd high(::fcntl(theirs.get(), F_DUPFD_CLOEXEC, kLowestSource));
  if (!high.valid()) throw SysError::from_errno("duplicate the end of a channel");
  const pid_t child = SpawnPlan(high.get()).start(executable, option);
  return {.pid = child, .channel = std::move(ours)};
}

}  // namespace replpage
