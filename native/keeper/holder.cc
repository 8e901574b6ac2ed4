#include "keeper/holder.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "keeper/cgroup_place.h"
#include "keeper/holder_link.h"
#include "keeper/keeper_setup.h"
#include "keeper/namespaces.h"
#include "keeper/oom_score.h"
#include "keeper/replica_keeper.h"

namespace replpage {
namespace {

constexpr int kConfigureTimeoutMs = 10'000;
constexpr int kControlBacklog = 16;

// Leaves the session and the parent. The first process ends here.
void become_daemon() {
  if (::setsid() < 0 && errno != EPERM) throw SysError::from_errno("setsid");
  const pid_t child = ::fork();
  if (child < 0) throw SysError::from_errno("fork");
  if (child > 0) ::_exit(0);
  // A machine that shuts down, or a terminal that closes, must not take the holder before the
  // group.
  for (const int number : {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGPIPE}) ::signal(number, SIG_IGN);
  ::umask(0077);
  if (::chdir("/") != 0) throw SysError::from_errno("chdir", on_path("/"));
  (void)::prctl(PR_SET_NAME, "replpage-holder");
}

// A group's open files pass through the keeper. Raising the limit needs no more than the rights we
// have to have anyway.
void allow_many_descriptors() {
  constexpr rlim_t kDescriptors = 1 << 20;
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  rlimit wanted{};
  wanted.rlim_cur = wanted.rlim_max = std::max(limit.rlim_max, kDescriptors);
  if (::setrlimit(RLIMIT_NOFILE, &wanted) == 0) return;
  limit.rlim_cur = limit.rlim_max;
  (void)::setrlimit(RLIMIT_NOFILE, &limit);
}

UniqueFd listen_on(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    throw SysError("listen on", ENAMETOOLONG, on_path(path));
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) throw SysError::from_errno("socket");
  ::unlink(path.c_str());
  // The mask set by become_daemon gives mode 0600 or 0700 from the first moment.
  if (::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      ::chmod(path.c_str(), 0600) != 0 || ::listen(fd.get(), kControlBacklog) != 0) {
    throw SysError::from_errno("listen on", on_path(path));
  }
  return fd;
}

UniqueFd next_of(std::vector<UniqueFd>& descriptors, size_t& at) {
  if (at >= descriptors.size()) throw FormatError("kConfigure lacks a descriptor");
  return std::move(descriptors[at++]);
}

KeeperSetup take_configuration(ReceivedMessage message) {
  if (message.type != MessageType::kConfigure) throw FormatError("the first message is another");
  KeeperSetup setup;
  setup.configuration = decode<ConfigureMessage>(message.body);
  size_t at = 0;
  setup.staging_memory = next_of(message.descriptors, at);
  if (setup.configuration.spill_bytes_max != 0) {
    setup.staging_spill = next_of(message.descriptors, at);
  }
  setup.outside_stream = setup.configuration.stdio_path.empty() ? open_path("/dev/null", O_RDWR)
                                                                : next_of(message.descriptors, at);
  if (setup.configuration.namespaces_of != 0) {
    setup.primary = next_of(message.descriptors, at);
    setup.namespaces = namespaces_to_enter(setup.configuration.namespaces_of);
  }
  if (at != message.descriptors.size()) throw FormatError("kConfigure has a descriptor too many");
  return setup;
}

// fork() with other flags. The kernel writes the thread's number where fork() of the C library
// would have written it, so that the library's own records are right in the child.
pid_t clone_keeper(int& pidfd) {
  uint64_t tid_address = 0;
  (void)::prctl(PR_GET_TID_ADDRESS, &tid_address);
  clone_args arguments{};
  arguments.flags = CLONE_NEWPID | CLONE_FILES | CLONE_PIDFD;
  if (tid_address != 0) arguments.flags |= CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID;
  arguments.child_tid = tid_address;
  arguments.pidfd = reinterpret_cast<uint64_t>(&pidfd);
  arguments.exit_signal = SIGCHLD;
  const long pid = ::syscall(SYS_clone3, &arguments, sizeof arguments);
  if (pid < 0) throw SysError::from_errno("clone3 of the keeper");
  return static_cast<pid_t>(pid);
}

struct Keeper {
  pid_t pid = 0;
  UniqueFd pidfd;
  UniqueFd link;
};

Keeper start_keeper(KeeperSetup setup) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
    throw SysError::from_errno("socketpair of holder and keeper");
  }
  Keeper keeper;
  keeper.link.reset(ends[0]);
  setup.holder_link.reset(ends[1]);
  setup.holder.reset(static_cast<int>(::syscall(SYS_pidfd_open, ::getpid(), 0)));
  if (!setup.holder.valid()) throw SysError::from_errno("pidfd_open of the holder");
  expect_credentials(keeper.link.get());
  int pidfd = -1;
  keeper.pid = clone_keeper(pidfd);
  if (keeper.pid == 0) {
    (void)keeper.link.release();  // the holder's, in the same table
    ::_exit(run_keeper(std::move(setup)));
  }
  keeper.pidfd.reset(pidfd);
  setup.disown();
  return keeper;
}

void send_failure(Channel& channel, const std::string& reason) {
  try {
    channel.send(MessageType::kFailed, FailedMessage{.reason = reason, .error = 0});
  } catch (const std::exception&) {  // nobody is left to tell
  }
}

// Answers the keeper until it has ended, and with it everything in its namespace: the kernel ends
// all processes of a PID namespace before its first one can be waited for (pid_namespaces(7)).
void attend(const Keeper& keeper) {
  pollfd items[2] = {{.fd = keeper.pidfd.get(), .events = POLLIN, .revents = 0},
                     {.fd = keeper.link.get(), .events = POLLIN, .revents = 0}};
  for (;;) {
    if (::poll(items, 2, -1) < 0 && errno != EINTR) return;
    if ((items[0].revents & POLLIN) != 0) break;
    if (items[1].revents != 0 && !answer_host_pid(keeper.link.get())) items[1].fd = -1;
  }
  while (::waitpid(keeper.pid, nullptr, __WALL) < 0 && errno == EINTR) {
  }
}

// Returns the exit code.
int hold(Channel& channel) {
  std::optional<ReceivedMessage> message = channel.receive(kConfigureTimeoutMs);
  if (!message) return 1;
  KeeperSetup setup = take_configuration(std::move(*message));
  const std::string control = setup.configuration.control_socket;
  std::vector<std::string> notes;
  // With our pid no group of that name that is left over, with limits of its own, is taken for it.
  CgroupPlace place(setup.configuration.name + "." +
                        std::to_string(setup.configuration.generation) + "." +
                        std::to_string(::getpid()),
                    notes);
  set_oom_score("-1000");  // without it nothing keeps cold pages from being read as zeros
  allow_many_descriptors();
  setup.control = listen_on(control);
  setup.channel.reset(::fcntl(channel.fd(), F_DUPFD_CLOEXEC, 0));
  if (!setup.channel.valid()) throw SysError::from_errno("duplicate the channel");
  Keeper keeper = start_keeper(std::move(setup));
  std::string failure;
  if (!wait_start(keeper.link.get(), keeper.pidfd.get(), failure)) failure = "the keeper ended";
  if (failure.empty()) {
    const int pidfd = keeper.pidfd.get();
    channel.send(MessageType::kReady,
                 ReadyMessage{.holder_pid = ::getpid(), .keeper_pid = keeper.pid, .notes = notes},
                 {&pidfd, 1});
    attend(keeper);
  } else {
    send_failure(channel, failure);
    ::kill(keeper.pid, SIGKILL);
  }
  ::unlink(control.c_str());
  place.leave();
  return failure.empty() ? 0 : 1;
}

}  // namespace

int run_holder(int channel_fd) {
  Channel channel{UniqueFd(channel_fd)};
  int code = 1;
  try {
    if (::fcntl(channel_fd, F_SETFD, FD_CLOEXEC) != 0) throw SysError::from_errno("fcntl");
    become_daemon();
    code = hold(channel);
  } catch (const std::exception& error) {
    send_failure(channel, error.what());
  }
  // Without destructors: the numbers may be the keeper's.
  ::_exit(code);
}

}  // namespace replpage
