// Recreates sockets.
#include <fcntl.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/image/socket_capture.h"
#include "core/image/socket_options.h"
#include "core/image/tcp_connection.h"
#include "core/restore/open_files.h"

namespace replpage::recreate {
namespace {

const sockaddr* as_address(const Bytes& bytes) {
  return reinterpret_cast<const sockaddr*>(bytes.data());
}

UniqueFd new_socket(const SocketState& state) {
  UniqueFd made(::socket(state.domain, state.type | SOCK_CLOEXEC | SOCK_NONBLOCK, state.protocol));
  if (!made.valid()) {
    throw SysError::from_errno("socket of domain " + std::to_string(state.domain));
  }
  return made;
}

void bind_to(int socket, const Bytes& address) {
  if (::bind(socket, as_address(address), static_cast<socklen_t>(address.size())) != 0) {
    throw SysError::from_errno("bind");
  }
}

void listen_on(int socket, const SocketState& state) {
  if (state.listening && ::listen(socket, state.backlog) != 0) throw SysError::from_errno("listen");
}

// Connections of the old process may still linger at the address, so it is reused whatever the
// program said; what it said is set afterwards. Where the old connections' program had not set
// SO_REUSEADDR the kernel still refuses for a minute (TIME_WAIT), as it would had it been
// restarted.
void bind_internet(int socket, const SocketState& state) {
  set_socket_options(socket, state.options, OptionTime::kBeforeBind);
  if (!state.local_address.empty()) {
    const int on = 1;
    ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    bind_to(socket, state.local_address);
    const bool reuse =
        std::any_of(state.options.begin(), state.options.end(), [](const SocketOption& option) {
          return option.level == SOL_SOCKET && option.name == SO_REUSEADDR;
        });
    const int as_before = reuse ? 1 : 0;
    ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &as_before, sizeof as_before);
  }
  set_socket_options(socket, state.options, OptionTime::kAfterBind);
}

// Connects to the loopback address of its family, and is reset from the other side: a program that
// reads gets ECONNRESET, then end of file; epoll tells EPOLLIN, EPOLLHUP and EPOLLERR.
bool reset_over_loopback(int socket, int domain) {
  sockaddr_in6 address6{};
  sockaddr_in address4{};
  address6.sin6_family = AF_INET6;
  address6.sin6_addr = IN6ADDR_LOOPBACK_INIT;
  address4.sin_family = AF_INET;
  address4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  sockaddr* address = domain == AF_INET6 ? reinterpret_cast<sockaddr*>(&address6)
                                         : reinterpret_cast<sockaddr*>(&address4);
  socklen_t size = domain == AF_INET6 ? sizeof address6 : sizeof address4;
  const UniqueFd listener(::socket(domain, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP));
  if (!listener.valid() || ::bind(listener.get(), address, size) != 0 ||
      ::listen(listener.get(), 1) != 0 || ::getsockname(listener.get(), address, &size) != 0 ||
      ::connect(socket, address, size) != 0) {
    return false;
  }
  const UniqueFd other(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  const linger at_once{1, 0};
  return other.valid() &&
         ::setsockopt(other.get(), SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once) == 0;
}

// The very connection, from where its image left it. Invalid: its address is not on this machine,
// so that it is lost.
UniqueFd moved_connection(const SocketState& state) {
  TcpConnection connection;
  try {
    UniqueFd made = recreate::connection(state, connection);
    recreate::revive(made.get(), connection, state);
    return made;
  } catch (const SysError& error) {
    if (error.error() == EADDRNOTAVAIL) return {};
    throw;
  }
}

// Whether a socket of some type answers at the address.
bool is_alive(const Bytes& address) {
  for (const int type : {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET}) {
    const UniqueFd probe(::socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (::connect(probe.get(), as_address(address), static_cast<socklen_t>(address.size())) == 0 ||
        (errno != ECONNREFUSED && errno != EPROTOTYPE)) {
      return true;
    }
  }
  return false;
}

// The keeper's working directory while this lives.
class WorkingDirectory {
 public:
  explicit WorkingDirectory(const std::string& path) : before_(open_path(".", O_PATH)) {
    if (::chdir(path.c_str()) != 0) throw SysError::from_errno("chdir", on_path(path));
  }
  ~WorkingDirectory() { (void)!::fchdir(before_.get()); }
  WorkingDirectory(const WorkingDirectory&) = delete;
  WorkingDirectory& operator=(const WorkingDirectory&) = delete;

 private:
  UniqueFd before_;
};

// A socket file that nobody listens on any more would make bind() fail: it is replaced by one with
// the same owner and permissions.
void bind_unix(int socket, const OpenFileImage& file) {
  const Bytes& address = file.socket.local_address;
  const std::string path = unix_path_of(address);
  if (path.empty()) return bind_to(socket, address);
  std::optional<WorkingDirectory> directory;
  if (path[0] != '/') {
    if (file.path.empty()) throw SysError("find where a socket was bound", ENOENT, on_path(path));
    directory.emplace(file.path);
  }
  struct stat old {};
  const bool stale =
      ::lstat(path.c_str(), &old) == 0 && S_ISSOCK(old.st_mode) && !is_alive(address);
  if (stale) ::unlink(path.c_str());
  bind_to(socket, address);
  if (!stale) return;
  if (::lchown(path.c_str(), old.st_uid, old.st_gid) != 0 ||
      ::chmod(path.c_str(), old.st_mode & 07777) != 0) {
    throw SysError::from_errno("give a socket its owner", on_path(path));
  }
}

void fill_queue(int from, const std::vector<Bytes>& queue) {
  if (queue.empty()) return;
  int before = 0;
  socklen_t size = sizeof before;
  ::getsockopt(from, SOL_SOCKET, SO_SNDBUF, &before, &size);
  size_t bytes = 0;
  for (const Bytes& piece : queue) bytes += piece.size();
  const int room = static_cast<int>(std::min<size_t>(4 * bytes + (1u << 20), 1u << 30));
  ::setsockopt(from, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room);
  for (const Bytes& piece : queue) {
    for (size_t at = 0; at < piece.size();) {
      const ssize_t put = ::send(from, piece.data() + at, piece.size() - at, MSG_NOSIGNAL);
      if (put < 0) throw SysError::from_errno("fill a UNIX socket's queue");
      at += static_cast<size_t>(put);
    }
  }
  before /= 2;  // the kernel tells twice what is set
  ::setsockopt(from, SOL_SOCKET, SO_SNDBUFFORCE, &before, sizeof before);
}

void shut(int socket, const SocketState& state) {
  if (state.shut_read) ::shutdown(socket, SHUT_RD);
  if (state.shut_write) ::shutdown(socket, SHUT_WR);
}

void set_all_options(int socket, const SocketState& state) {
  set_socket_options(socket, state.options, OptionTime::kBeforeBind);
  set_socket_options(socket, state.options, OptionTime::kAfterBind);
}

void socket_pair(const SocketState& state, UniqueFd& one, UniqueFd& other) {
  int ends[2];
  if (::socketpair(AF_UNIX, state.type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) != 0) {
    throw SysError::from_errno("socketpair");
  }
  one.reset(ends[0]);
  other.reset(ends[1]);
}

}  // namespace

UniqueFd tcp(const OpenFileImage& file) {
  const SocketState& state = file.socket;
  if (state.connected && !state.queue.empty()) {
    UniqueFd moved = moved_connection(state);
    if (moved.valid()) return moved;
  }
  UniqueFd made = new_socket(state);
  if (!state.connected) {
    bind_internet(made.get(), state);
    listen_on(made.get(), state);
    return made;
  }
  // Without a loopback interface the socket is one that never was connected: ENOTCONN, EPOLLHUP.
  ::fcntl(made.get(), F_SETFL, 0);
  if (!reset_over_loopback(made.get(), state.domain)) made = new_socket(state);
  return made;
}

UniqueFd connection(const SocketState& state, TcpConnection& connection) {
  Reader reader(state.queue.front());
  reader(connection);
  reader.finish();
  return make_connection(connection, [&](int socket) {
    set_socket_options(socket, state.options, OptionTime::kBeforeBind);
  });
}

void revive(int socket, const TcpConnection& connection, const SocketState& state) {
  ::fcntl(socket, F_SETFL, O_NONBLOCK);
  go_live(socket, connection);
  set_socket_options(socket, state.options, OptionTime::kAfterBind);
}

UniqueFd udp(const OpenFileImage& file) {
  const SocketState& state = file.socket;
  UniqueFd made = new_socket(state);
  bind_internet(made.get(), state);
  if (state.connected && ::connect(made.get(), as_address(state.peer_address),
                                   static_cast<socklen_t>(state.peer_address.size())) != 0) {
    throw SysError::from_errno("connect a UDP socket");
  }
  return made;
}

UniqueFd netlink(const OpenFileImage& file) {
  const SocketState& state = file.socket;
  UniqueFd made = new_socket(state);
  sockaddr_nl address{};
  std::memcpy(&address, state.local_address.data(),
              std::min(state.local_address.size(), sizeof address));
  if (address.nl_pid != 0 &&
      ::bind(made.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    throw SysError::from_errno("bind a netlink socket");
  }
  for (const SocketOption& option : state.options) {
    if (option.level != SOL_NETLINK || option.name != NETLINK_ADD_MEMBERSHIP) continue;
    if (::setsockopt(made.get(), SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, option.value.data(),
                     static_cast<socklen_t>(option.value.size())) != 0) {
      throw SysError::from_errno("join a netlink group");
    }
  }
  return made;
}

UniqueFd unix_single(const OpenFileImage& file) {
  const SocketState& state = file.socket;
  const bool messages = state.type == SOCK_DGRAM;
  if (file.outside && !messages) {
    UniqueFd made;
    UniqueFd other;
    socket_pair(state, made, other);
    return made;
  }
  UniqueFd made = new_socket(state);
  set_socket_options(made.get(), state.options, OptionTime::kBeforeBind);
  if (!state.local_address.empty()) bind_unix(made.get(), file);
  set_socket_options(made.get(), state.options, OptionTime::kAfterBind);
  listen_on(made.get(), state);
  // A datagram socket finds a named peer again, such as /dev/log. If nobody is there, it is as if
  // the peer had gone: sending fails.
  if (messages && state.connected && state.peer_address.size() > sizeof(sa_family_t)) {
    (void)::connect(made.get(), as_address(state.peer_address),
                    static_cast<socklen_t>(state.peer_address.size()));
  }
  return made;
}

void unix_pair(const OpenFileImage& first, const OpenFileImage* second, UniqueFd& one,
               UniqueFd& other) {
  socket_pair(first.socket, one, other);
  fill_queue(other.get(), first.socket.queue);
  if (second == nullptr) {
    other.reset();
    set_all_options(one.get(), first.socket);
    return;
  }
  fill_queue(one.get(), second->socket.queue);
  shut(one.get(), first.socket);
  shut(other.get(), second->socket);
  set_all_options(one.get(), first.socket);
  set_all_options(other.get(), second->socket);
}

}  // namespace replpage::recreate
