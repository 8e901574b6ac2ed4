#include "core/image/socket_capture.h"

#include <linux/netlink.h>
#include <linux/socket.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>

#include "core/base/sys_error.h"
#include "core/image/socket_options.h"
#include "core/image/tcp_connection.h"

namespace replpage {
namespace {

constexpr int kMptcp = 262;  // IPPROTO_MPTCP

int integer_option(int socket, int level, int name) {
  int value = 0;
  socklen_t size = sizeof value;
  if (::getsockopt(socket, level, name, &value, &size) != 0) {
    throw SysError::from_errno("getsockopt " + std::to_string(name));
  }
  return value;
}

using AddressCall = int (*)(int, sockaddr*, socklen_t*);

// Empty: the socket has no such address.
Bytes address_of(int socket, AddressCall call) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  if (call(socket, reinterpret_cast<sockaddr*>(&address), &size) != 0) return {};
  const auto* bytes = reinterpret_cast<const uint8_t*>(&address);
  return {bytes, bytes + std::min<size_t>(size, sizeof address)};
}

// Also while it is connecting: getpeername(2) tells nothing yet.
bool tcp_in_use(int socket) {
  tcp_info info{};
  socklen_t size = sizeof info;
  if (::getsockopt(socket, IPPROTO_TCP, TCP_INFO, &info, &size) != 0) return false;
  return info.tcpi_state != TCP_CLOSE && info.tcpi_state != TCP_LISTEN;
}

// Most connections a listening TCP socket may have waiting; tcp_info(7) keeps it in tcpi_sacked.
int32_t tcp_backlog(int socket) {
  tcp_info info{};
  socklen_t size = sizeof info;
  if (::getsockopt(socket, IPPROTO_TCP, TCP_INFO, &info, &size) != 0) return SOMAXCONN;
  return static_cast<int32_t>(info.tcpi_sacked);
}

// A filter attached to a socket would have to be read back instruction by instruction.
bool has_filter(int socket) {
  socklen_t count = 0;
  if (::getsockopt(socket, SOL_SOCKET, SO_GET_FILTER, nullptr, &count) != 0) return true;
  return count != 0;
}

std::string read_internet(int socket, OpenFileImage& file) {
  SocketState& state = file.socket;
  if (state.type == SOCK_STREAM && (state.protocol == IPPROTO_TCP || state.protocol == kMptcp)) {
    file.kind = OpenFileKind::kTcpSocket;
    state.connected = state.connected || tcp_in_use(socket);
  } else if (state.type == SOCK_DGRAM && state.protocol == IPPROTO_UDP) {
    file.kind = OpenFileKind::kUdpSocket;
  } else {
    return "only TCP and UDP can be replicated of the internet protocols";
  }
  if (has_filter(socket)) return "a packet filter is attached to it";
  if (state.listening) state.backlog = tcp_backlog(socket);
  // An unbound internet socket tells port 0.
  if (state.local_address.size() >= sizeof(sockaddr_in)) {
    sockaddr_in address{};
    std::memcpy(&address, state.local_address.data(), sizeof address);
    if (address.sin_port == 0) state.local_address.clear();
  }
  return {};
}

std::string read_netlink(int socket, OpenFileImage& file) {
  file.kind = OpenFileKind::kNetlinkSocket;
  if (has_filter(socket)) return "a packet filter is attached to it";
  uint32_t groups[32] = {};
  socklen_t size = sizeof groups;
  if (::getsockopt(socket, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, groups, &size) != 0) return {};
  for (uint32_t group = 1; group <= 32 * std::size(groups); ++group) {
    if ((groups[(group - 1) / 32] >> ((group - 1) % 32) & 1) == 0) continue;
    SocketOption option{SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, {}};
    option.value.resize(sizeof group);
    std::memcpy(option.value.data(), &group, sizeof group);
    file.socket.options.push_back(std::move(option));
  }
  return {};
}

std::string read_by_domain(int socket, OpenFileImage& file) {
  SocketState& state = file.socket;
  switch (state.domain) {
    case AF_UNIX:
      file.kind = OpenFileKind::kUnixSocket;
      // The kernel tells an unnamed socket by the family alone.
      if (state.local_address.size() <= sizeof(sa_family_t)) state.local_address.clear();
      break;
    case AF_INET:
    case AF_INET6: {
      std::string refused = read_internet(socket, file);
      if (!refused.empty()) return refused;
      break;
    }
    case AF_NETLINK:
      return read_netlink(socket, file);
    default:
      return "address family " + std::to_string(state.domain) + " is not supported";
  }
  // What a connection's options were matters to nobody once it is reset.
  if (!state.connected || state.domain == AF_UNIX || state.type == SOCK_DGRAM) {
    state.options = read_socket_options(socket, state);
  }
  return {};
}

struct PeekResult {
  ssize_t bytes = 0;
  bool truncated = false;
};

// `into` may be too small for the message: `bytes` then still tells its whole length.
PeekResult peek(int socket, Bytes& into) {
  iovec part{into.data(), into.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  for (;;) {
    // No room for ancillary data: descriptors in flight are not installed here, but announced by
    // MSG_CTRUNC.
    const ssize_t got = ::recvmsg(socket, &message, MSG_PEEK | MSG_DONTWAIT | MSG_TRUNC);
    if (got < 0 && errno == EINTR) continue;
    return {got, (message.msg_flags & MSG_CTRUNC) != 0};
  }
}

// Moves the place where MSG_PEEK reads, and puts it back.
class PeekOffset {
 public:
  explicit PeekOffset(int socket)
      : socket_(socket), before_(integer_option(socket, SOL_SOCKET, SO_PEEK_OFF)) {
    set(0);
  }
  ~PeekOffset() { set(before_); }
  PeekOffset(const PeekOffset&) = delete;
  PeekOffset& operator=(const PeekOffset&) = delete;

 private:
  void set(int offset) { ::setsockopt(socket_, SOL_SOCKET, SO_PEEK_OFF, &offset, sizeof offset); }
  int socket_;
  int before_;
};

bool peek_messages(int socket, size_t bytes_max, SocketState& state) {
  constexpr size_t kMessageBytesMax = 256 * 1024;
  const PeekOffset offset(socket);
  Bytes buffer(kMessageBytesMax);
  for (size_t total = 0;;) {
    const PeekResult result = peek(socket, buffer);
    if (result.bytes < 0 && (errno == EAGAIN || errno == EINVAL)) return true;
    if (result.bytes < 0) throw SysError::from_errno("peek at a UNIX socket");
    if (result.truncated || static_cast<size_t>(result.bytes) > buffer.size()) return false;
    // End of a connection reads as an empty message for ever; a true empty datagram would not let
    // the peek offset advance either.
    if (result.bytes == 0) return true;
    total += static_cast<size_t>(result.bytes);
    if (total > bytes_max) return false;
    state.queue.emplace_back(buffer.begin(), buffer.begin() + result.bytes);
  }
}

bool peek_stream(int socket, size_t bytes, SocketState& state) {
  // A plain peek of a stream reads over all of its queue and stops only at descriptors in flight.
  Bytes buffer(bytes);
  const PeekResult result = peek(socket, buffer);
  if (result.bytes < 0 && errno == EAGAIN) return true;
  if (result.bytes < 0) throw SysError::from_errno("peek at a UNIX socket");
  if (result.truncated || static_cast<size_t>(result.bytes) != bytes) return false;
  state.queue.push_back(std::move(buffer));
  return true;
}

// Options of a connection that a program may have set. `locked`: SO_BUF_LOCK (Linux 5.14): a size
// that the kernel has chosen is none of these. Nor is what it notes of the first packet, where
// multicasts' time to live is kept otherwise.
void drop_kernels_own(std::vector<SocketOption>& options, int locked) {
  std::erase_if(options, [locked](const SocketOption& option) {
    if (option.level == IPPROTO_IP) return option.name == IP_MULTICAST_TTL;
    if (option.level == IPPROTO_IPV6) return option.name == IPV6_MULTICAST_HOPS;
    if (option.level != SOL_SOCKET) return false;
    return (option.name == SO_SNDBUF && (locked & SOCK_SNDBUF_LOCK) == 0) ||
           (option.name == SO_RCVBUF && (locked & SOCK_RCVBUF_LOCK) == 0);
  });
}

}  // namespace

SocketFinding read_socket(int socket, OpenFileImage& file) {
  SocketState& state = file.socket;
  state = {};
  state.domain = integer_option(socket, SOL_SOCKET, SO_DOMAIN);
  state.type = integer_option(socket, SOL_SOCKET, SO_TYPE);
  state.protocol = integer_option(socket, SOL_SOCKET, SO_PROTOCOL);
  state.listening = integer_option(socket, SOL_SOCKET, SO_ACCEPTCONN) != 0;
  state.local_address = address_of(socket, ::getsockname);
  state.peer_address = address_of(socket, ::getpeername);
  state.connected = !state.peer_address.empty();
  SocketFinding finding;
  finding.refused = read_by_domain(socket, file);
  finding.settled = state.listening || state.connected;
  return finding;
}

bool take_tcp_connection(int socket, OpenFileImage& file, size_t bytes_max) {
  if (file.kind != OpenFileKind::kTcpSocket || !file.socket.connected) return false;
  SocketState& state = file.socket;
  std::vector<SocketOption> options = read_socket_options(socket, state);
  drop_kernels_own(options, integer_option(socket, SOL_SOCKET, SO_BUF_LOCK));
  auto connection = take_connection(socket, bytes_max);
  if (!connection) return false;
  Writer writer;
  writer(*connection);
  state.queue.assign(1, writer.take());
  state.options = std::move(options);
  return true;
}

std::string unix_path_of(const Bytes& address) {
  constexpr size_t kPathAt = offsetof(sockaddr_un, sun_path);
  if (address.size() <= kPathAt || address[kPathAt] == 0) return {};
  const auto* text = reinterpret_cast<const char*>(address.data()) + kPathAt;
  return {text, ::strnlen(text, address.size() - kPathAt)};
}

void read_unix_facts(const UnixSocketFacts& facts, OpenFileImage& file) {
  SocketState& state = file.socket;
  state.shut_read = facts.shut_read;
  state.shut_write = facts.shut_write;
  if (state.listening) state.backlog = static_cast<int32_t>(facts.backlog);
  state.peer_object = facts.peer.value_or(0);
}

bool peek_unix_queue(int socket, size_t bytes_max, SocketState& state) {
  int waiting = 0;
  if (::ioctl(socket, SIOCINQ, &waiting) != 0) return true;  // EINVAL: it listens
  state.queue.clear();
  if (waiting == 0) return true;
  if (static_cast<size_t>(waiting) > bytes_max) return false;
  if (state.type == SOCK_STREAM) return peek_stream(socket, static_cast<size_t>(waiting), state);
  return peek_messages(socket, bytes_max, state);
}

}  // namespace replpage
