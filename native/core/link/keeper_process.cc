#include "core/link/keeper_process.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/caller_rights.h"
#include "core/base/sys_error.h"
#include "core/link/channel_child.h"
#include "core/link/keeper_lost.h"

namespace replpage {
namespace {

constexpr int kAnswerTimeoutMs = 10'000;

// The started process only forks the holder and exits, so that the holder is init's child.
UniqueFd start_holder(const std::string& executable) {
  ChannelChild child = start_with_channel(executable, "--hold");
  int status = 0;
  while (::waitpid(child.pid, &status, 0) < 0 && errno == EINTR) {
  }
  return std::move(child.channel);
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
  PrimaryClocks clocks = options.clocks;
  if (options.primary != 0) {
    clocks.inside = clock_offsets_of(options.primary) - clock_offsets_of(::getpid());
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
                                .namespaces_of = options.primary,
                                .clocks = clocks,
                                .service_address = options.service_address,
                                .drill = options.drill},
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

KeeperProcess spawn_keeper_of(const ReplicaOptions& group, pid_t primary,
                              const StagingArea& staging) {
  UniqueFd stdio;
  if (!group.stdio_path.empty()) {
    stdio = open_with_rights(group.stdio_path, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW, 0600,
                             {group.uid, group.gid, group.groups});
  }
  return spawn_keeper({.executable = group.keeper_path,
                       .name = group.name,
                       .generation = group.generation,
                       .primary = primary,
                       .control_socket = group.control_socket,
                       .stdio = stdio.get(),
                       .stdio_path = group.stdio_path,
                       .clocks = group.clocks,
                       .service_address = group.address_comes ? group.service_address : "",
                       .drill = group.drill},
                      staging);
}

}  // namespace replpage
