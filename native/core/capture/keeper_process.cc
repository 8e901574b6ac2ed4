#include "core/capture/keeper_process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <array>

#include "core/base/sys_error.h"
#include "core/capture/keeper_lost.h"

namespace replpage {
namespace {

constexpr int kChannelNumber = 3;  // in the started process
constexpr int kAnswerTimeoutMs = 10'000;
// Above what a dup2 to kChannelNumber could overwrite.
constexpr int kLowestSource = 16;

// Attributes and actions of posix_spawn, freed at the end of the scope.
class SpawnPlan {
 public:
  SpawnPlan() {
    check(::posix_spawn_file_actions_init(&actions_));
    check(::posix_spawnattr_init(&attributes_));
    sigset_t none;
    sigset_t all;
    ::sigemptyset(&none);
    ::sigfillset(&all);
    check(::posix_spawnattr_setsigmask(&attributes_, &none));
    check(::posix_spawnattr_setsigdefault(&attributes_, &all));
    check(::posix_spawnattr_setflags(&attributes_, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF));
  }
  ~SpawnPlan() {
    ::posix_spawn_file_actions_destroy(&actions_);
    ::posix_spawnattr_destroy(&attributes_);
  }
  SpawnPlan(const SpawnPlan&) = delete;
  SpawnPlan& operator=(const SpawnPlan&) = delete;

  void pass_only(int fd) {
    for (const int standard : {0, 1, 2}) {
      check(::posix_spawn_file_actions_addopen(&actions_, standard, "/dev/null", O_RDWR, 0));
    }
    check(::posix_spawn_file_actions_adddup2(&actions_, fd, kChannelNumber));
    check(::posix_spawn_file_actions_addclosefrom_np(&actions_, kChannelNumber + 1));
  }

  pid_t start(const std::string& executable) {
    std::string path = executable;
    std::string option = "--hold";
    std::string number = std::to_string(kChannelNumber);
    std::string locale = "LC_ALL=C";
    std::array<char*, 4> arguments{path.data(), option.data(), number.data(), nullptr};
    std::array<char*, 2> environment{locale.data(), nullptr};
    pid_t child = 0;
    const int error = ::posix_spawn(&child, path.c_str(), &actions_, &attributes_, arguments.data(),
                                    environment.data());
    if (error != 0) throw SysError("start the keeper", error, on_path(executable));
    return child;
  }

 private:
  static void check(int error) {
    if (error != 0) throw SysError("prepare the keeper's start", error);
  }
  posix_spawn_file_actions_t actions_{};
  posix_spawnattr_t attributes_{};
};

// The started process only forks the holder and exits, so that the holder is init's child.
void reap_starter(pid_t child) {
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
}

UniqueFd start_holder(const std::string& executable) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
    throw SysError::from_errno("socketpair for the keeper");
  }
  UniqueFd ours(ends[0]);
  UniqueFd theirs(ends[1]);
  UniqueFd high(::fcntl(theirs.get(), F_DUPFD_CLOEXEC, kLowestSource));
  if (!high.valid()) throw SysError::from_errno("duplicate the keeper's channel");
  SpawnPlan plan;
  plan.pass_only(high.get());
  reap_starter(plan.start(executable));
  return ours;
}

void send_configuration(Channel& channel, const KeeperOptions& options,
                        const StagingArea& staging) {
  std::vector<int> descriptors{staging.memory_fd()};
  if (staging.spill_bytes_max() != 0) descriptors.push_back(staging.spill_fd());
  std::string stdio_path = options.stdio_path;
  if (options.stdio >= 0) {
    descriptors.push_back(options.stdio);
    if (stdio_path.empty()) stdio_path = "standard output";
  } else {
    stdio_path.clear();
  }
  UniqueFd primary;
  if (options.primary != 0) {
    primary.reset(static_cast<int>(::syscall(SYS_pidfd_open, options.primary, 0)));
    if (!primary.valid()) throw SysError::from_errno("pidfd_open", on_pid(options.primary));
    descriptors.push_back(primary.get());
  }
  channel.send(MessageType::kConfigure,
               ConfigureMessage{.name = options.name,
                                .generation = options.generation,
                                .staging_bytes = staging.memory_bytes(),
                                .spill_bytes_max = staging.spill_bytes_max(),
                                .control_socket = options.control_socket,
                                .stdio_path = stdio_path,
                                .namespaces_of = options.primary},
               descriptors);
}

}  // namespace

KeeperProcess spawn_keeper(const KeeperOptions& options, const StagingArea& staging) {
  Channel channel(start_holder(options.executable));
  send_configuration(channel, options, staging);
  std::optional<ReceivedMessage> answer = channel.receive(kAnswerTimeoutMs);
  if (!answer && channel.closed()) throw KeeperLost("the keeper ended while it started");
  if (!answer) throw SysError("wait for the keeper to start", ETIMEDOUT);
  if (answer->type == MessageType::kFailed) {
    throw KeeperLost(decode<FailedMessage>(answer->body).reason);
  }
  if (answer->type != MessageType::kReady || answer->descriptors.size() != 1) {
    throw FormatError("the keeper answered kConfigure with something else");
  }
  auto ready = decode<ReadyMessage>(answer->body);
  return {.channel = std::move(channel),
          .holder = ready.holder_pid,
          .keeper = ready.keeper_pid,
          .pidfd = std::move(answer->descriptors[0]),
          .notes = std::move(ready.notes)};
}

}  // namespace replpage
