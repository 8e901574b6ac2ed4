#include "core/image/tcp_connection.h"

#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <string>

#include "core/base/sys_error.h"

namespace replpage {
namespace {

template <class T>
void set(int socket, int name, const T& value, const char* what) {
  if (::setsockopt(socket, IPPROTO_TCP, name, &value, sizeof value) != 0) {
    throw SysError::from_errno(std::string("repair a TCP connection: ") + what);
  }
}

void reuse_address(int socket, bool reused) {
  const int value = reused ? 1 : 0;
  ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &value, sizeof value);
}

template <class T>
T get(int socket, int name, const char* what) {
  T value{};
  socklen_t size = sizeof value;
  if (::getsockopt(socket, IPPROTO_TCP, name, &value, &size) != 0) {
    throw SysError::from_errno(std::string("take a TCP connection: ") + what);
  }
  return value;
}

uint32_t bytes_in(int socket, unsigned long which) {
  int bytes = 0;
  if (::ioctl(socket, which, &bytes) != 0) throw SysError::from_errno("measure a TCP queue");
  return static_cast<uint32_t>(std::max(0, bytes));
}

using AddressCall = int (*)(int, sockaddr*, socklen_t*);

Bytes address_of(int socket, AddressCall call) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  if (call(socket, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    throw SysError::from_errno("take a TCP connection: its addresses");
  }
  const auto* bytes = reinterpret_cast<const uint8_t*>(&address);
  return {bytes, bytes + size};
}

// In repair mode a peek reads the queue that is chosen, the one of what was sent too.
Bytes read_queue(int socket, int queue, uint32_t bytes) {
  set(socket, TCP_REPAIR_QUEUE, queue, "choose a queue");
  Bytes content(bytes);
  if (bytes == 0) return content;
  const ssize_t got = ::recv(socket, content.data(), content.size(), MSG_PEEK | MSG_DONTWAIT);
  if (got < 0) throw SysError::from_errno("take a TCP connection: a queue");
  // It has grown or shrunk: packets pass, or the program runs.
  if (static_cast<size_t>(got) != content.size()) throw SysError("take a TCP connection", EBUSY);
  return content;
}

void read_agreed(int socket, const tcp_info& info, TcpConnection& connection) {
  connection.segment_bytes_max = static_cast<uint16_t>(get<int>(socket, TCP_MAXSEG, "segments"));
  connection.window_scaled = (info.tcpi_options & TCPI_OPT_WSCALE) != 0;
  connection.send_scale = info.tcpi_snd_wscale;
  connection.receive_scale = info.tcpi_rcv_wscale;
  connection.selective = (info.tcpi_options & TCPI_OPT_SACK) != 0;
  connection.timestamps = (info.tcpi_options & TCPI_OPT_TIMESTAMPS) != 0;
  connection.timestamp = get<uint32_t>(socket, TCP_TIMESTAMP, "timestamp");
  const auto window = get<tcp_repair_window>(socket, TCP_REPAIR_WINDOW, "window");
  connection.window_update_sequence = window.snd_wl1;
  connection.send_window = window.snd_wnd;
  connection.window_max = window.max_window;
  connection.receive_window = window.rcv_wnd;
  connection.receive_update_sequence = window.rcv_wup;
}

TcpConnection read_connection(int socket, const tcp_info& info, size_t bytes_max) {
  TcpConnection connection;
  connection.local_address = address_of(socket, ::getsockname);
  connection.peer_address = address_of(socket, ::getpeername);
  const uint32_t waiting = bytes_in(socket, SIOCINQ);
  const uint32_t sent = bytes_in(socket, SIOCOUTQ);
  connection.unsent_bytes = bytes_in(socket, SIOCOUTQNSD);
  if (size_t{waiting} + sent > bytes_max) throw SysError("take a TCP connection", EMSGSIZE);
  connection.receive_queue = read_queue(socket, TCP_RECV_QUEUE, waiting);
  connection.receive_sequence = get<uint32_t>(socket, TCP_QUEUE_SEQ, "sequence");
  connection.send_queue = read_queue(socket, TCP_SEND_QUEUE, sent);
  connection.send_sequence = get<uint32_t>(socket, TCP_QUEUE_SEQ, "sequence");
  set(socket, TCP_REPAIR_QUEUE, int{TCP_NO_QUEUE}, "choose no queue");
  read_agreed(socket, info, connection);
  // A packet that had passed the filter already, after the peek and before the sequence.
  if (bytes_in(socket, SIOCINQ) != waiting || bytes_in(socket, SIOCOUTQ) != sent) {
    throw SysError("take a TCP connection", EBUSY);
  }
  return connection;
}

void set_sequence(int socket, int queue, uint32_t sequence) {
  set(socket, TCP_REPAIR_QUEUE, queue, "choose a queue");
  set(socket, TCP_QUEUE_SEQ, sequence, "sequence");
}

void set_agreed(int socket, const TcpConnection& connection) {
  std::array<tcp_repair_opt, 4> options{};
  size_t count = 0;
  options[count++] = {TCPOPT_MAXSEG, connection.segment_bytes_max};
  if (connection.window_scaled) {
    const uint32_t scales = connection.send_scale | connection.receive_scale << 16;
    options[count++] = {TCPOPT_WINDOW, scales};
  }
  if (connection.selective) options[count++] = {TCPOPT_SACK_PERMITTED, 0};
  if (connection.timestamps) options[count++] = {TCPOPT_TIMESTAMP, 0};
  const auto bytes = static_cast<socklen_t>(count * sizeof options[0]);
  if (::setsockopt(socket, IPPROTO_TCP, TCP_REPAIR_OPTIONS, options.data(), bytes) != 0) {
    throw SysError::from_errno("repair a TCP connection: options");
  }
  if (connection.timestamps) set(socket, TCP_TIMESTAMP, connection.timestamp, "timestamp");
}

void set_window(int socket, const TcpConnection& connection) {
  const tcp_repair_window window{connection.window_update_sequence, connection.send_window,
                                 connection.window_max, connection.receive_window,
                                 connection.receive_update_sequence};
  set(socket, TCP_REPAIR_WINDOW, window, "window");
}

// Room for a whole queue, whatever the limits of this machine: what the other side was told that it
// may send is there already.
void make_room(int socket, int name, size_t bytes) {
  const int room = static_cast<int>(std::min<size_t>(2 * bytes + (64u << 10), 1u << 30));
  int now = 0;
  socklen_t size = sizeof now;
  const int read = name == SO_SNDBUFFORCE ? SO_SNDBUF : SO_RCVBUF;
  ::getsockopt(socket, SOL_SOCKET, read, &now, &size);
  if (bytes == 0 || now >= 2 * room) return;
  ::setsockopt(socket, SOL_SOCKET, name, &room, sizeof room);
  // The kernel goes on choosing the size by itself (Linux 5.14).
  const int unlocked = 0;
  ::setsockopt(socket, SOL_SOCKET, SO_BUF_LOCK, &unlocked, sizeof unlocked);
}

void put(int socket, std::span<const uint8_t> bytes) {
  // The kernel makes one segment of each call in repair mode, and takes no endless one.
  constexpr size_t kAtOnce = 16 << 10;
  while (!bytes.empty()) {
    const auto part = bytes.first(std::min(bytes.size(), kAtOnce));
    const ssize_t done = ::send(socket, part.data(), part.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (done < 0) throw SysError::from_errno("repair a TCP connection: fill a queue");
    bytes = bytes.subspan(static_cast<size_t>(done));
  }
}

void fill_queues(int socket, const TcpConnection& connection) {
  make_room(socket, SO_RCVBUFFORCE, connection.receive_queue.size());
  make_room(socket, SO_SNDBUFFORCE, connection.send_queue.size());
  set(socket, TCP_REPAIR_QUEUE, int{TCP_RECV_QUEUE}, "choose a queue");
  put(socket, connection.receive_queue);
  const size_t sent = connection.send_queue.size() - connection.unsent_bytes;
  set(socket, TCP_REPAIR_QUEUE, int{TCP_SEND_QUEUE}, "choose a queue");
  put(socket, std::span(connection.send_queue).first(sent));
  set(socket, TCP_REPAIR_QUEUE, int{TCP_NO_QUEUE}, "choose no queue");
}

}  // namespace

std::optional<TcpConnection> take_connection(int socket, size_t bytes_max) {
  const auto info = get<tcp_info>(socket, TCP_INFO, "state");
  if (info.tcpi_state != TCP_ESTABLISHED) return std::nullopt;
  int reused = 0;
  socklen_t size = sizeof reused;
  ::getsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &reused, &size);
  set(socket, TCP_REPAIR, int{TCP_REPAIR_ON}, "begin");
  struct LeaveRepair {
    int socket;
    bool reused;
    ~LeaveRepair() {
      const int off = TCP_REPAIR_OFF_NO_WP;
      ::setsockopt(socket, IPPROTO_TCP, TCP_REPAIR, &off, sizeof off);
      reuse_address(socket, reused);
    }
  } leave{socket, reused != 0};
  TcpConnection connection = read_connection(socket, info, bytes_max);
  connection.address_reused = reused != 0;
  return connection;
}

UniqueFd make_connection(const TcpConnection& connection,
                         const std::function<void(int socket)>& prepare) {
  if (connection.unsent_bytes > connection.send_queue.size()) {
    throw FormatError("a TCP connection has more unsent bytes than bytes to send");
  }
  sockaddr_storage local{};
  std::copy_n(connection.local_address.data(),
              std::min(connection.local_address.size(), sizeof local),
              reinterpret_cast<uint8_t*>(&local));
  UniqueFd made(::socket(local.ss_family, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP));
  if (!made.valid()) throw SysError::from_errno("make a TCP socket");
  const int socket = made.get();
  if (prepare) prepare(socket);
  // From now on it shares its port with whoever listens there.
  set(socket, TCP_REPAIR, int{TCP_REPAIR_ON}, "begin");
  set_sequence(
      socket, TCP_RECV_QUEUE,
      connection.receive_sequence - static_cast<uint32_t>(connection.receive_queue.size()));
  set_sequence(socket, TCP_SEND_QUEUE,
               connection.send_sequence - static_cast<uint32_t>(connection.send_queue.size()));
  const auto* from = reinterpret_cast<const sockaddr*>(connection.local_address.data());
  const auto* to = reinterpret_cast<const sockaddr*>(connection.peer_address.data());
  if (::bind(socket, from, static_cast<socklen_t>(connection.local_address.size())) != 0) {
    throw SysError::from_errno("bind a TCP connection");
  }
  if (::connect(socket, to, static_cast<socklen_t>(connection.peer_address.size())) != 0) {
    throw SysError::from_errno("connect a TCP connection that is repaired");
  }
  set_agreed(socket, connection);
  fill_queues(socket, connection);
  set_window(socket, connection);
  return made;
}

void go_live(int socket, const TcpConnection& connection) {
  set(socket, TCP_REPAIR, int{TCP_REPAIR_OFF}, "end");
  reuse_address(socket, connection.address_reused);
  // What was never sent the kernel sends in its own time.
  put(socket, std::span(connection.send_queue).last(connection.unsent_bytes));
}

void fall_silent(int socket) noexcept {
  const int on = TCP_REPAIR_ON;
  ::setsockopt(socket, IPPROTO_TCP, TCP_REPAIR, &on, sizeof on);
}

}  // namespace replpage
