// Sockets: pairs, servers, connections.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include <cstring>

#include "core/base/clock.h"
#include "core/restore/descriptors.h"
#include "test/descriptor_steps.h"
#include "test/test.h"

namespace replpage::testing {
namespace {

TEST(unix_pairs_keep_what_is_queued) {
  for (const How how : kEveryWay) {
    CallProcess primary(clean([] {
      int ends[2];
      must(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) == 0, "socketpair");
      place(ends[0], 10);
      place(ends[1], 11);
      const std::string text(150000, 'y');
      must(::write(10, text.data(), text.size()) == 150000, "write");
      must(::write(11, "back", 4) == 4, "write");
      must(::shutdown(11, SHUT_WR) == 0, "shutdown");
      must(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, ends) == 0, "socketpair");
      place(ends[0], 12);
      place(ends[1], 13);
      must(::write(12, "first", 5) == 5 && ::write(12, "second", 6) == 6, "write");
      must(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) == 0, "socketpair");
      place(ends[0], 14);
      must(::write(ends[1], "last words", 10) == 10, "write");
      ::close(ends[1]);
    }));
    CallProcess replica;
    move_descriptors(primary, replica, how);
    const UniqueFd stream = replica.descriptor(11);
    size_t total = 0;
    for (std::string text; (text = read_some(stream.get()))[0] == 'y';) total += text.size();
    CHECK_EQUAL(total, 150000u);
    CHECK_EQUAL(read_some(replica.descriptor(10).get()), "back");
    CHECK_EQUAL(read_some(replica.descriptor(10).get()), "");  // shut down
    CHECK_EQUAL(::write(replica.descriptor(10).get(), "on", 2), 2);
    CHECK_EQUAL(read_some(replica.descriptor(11).get()), "on");
    CHECK_EQUAL(read_some(replica.descriptor(13).get()), "first");
    CHECK_EQUAL(read_some(replica.descriptor(13).get()), "second");
    CHECK_EQUAL(read_some(replica.descriptor(14).get()), "last words");
    CHECK_EQUAL(read_some(replica.descriptor(14).get()), "");
  }
}

int option(int socket, int level, int name) {
  int value = -1;
  socklen_t size = sizeof value;
  ::getsockopt(socket, level, name, &value, &size);
  return value;
}

sockaddr_in loopback(uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = port;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

uint16_t port_of(int socket) {
  sockaddr_in address{};
  socklen_t size = sizeof address;
  ::getsockname(socket, reinterpret_cast<sockaddr*>(&address), &size);
  return address.sin_port;
}

void set_option(int socket, int level, int name, int value) {
  must(::setsockopt(socket, level, name, &value, sizeof value) == 0, "setsockopt");
}

UniqueFd connect_to(uint16_t port) {
  UniqueFd client(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = loopback(port);
  must(::connect(client.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0,
       "connect");
  return client;
}

void open_tcp_server() {
  place(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), 10, 0);
  set_option(10, SOL_SOCKET, SO_REUSEADDR, 1);
  set_option(10, SOL_SOCKET, SO_REUSEPORT, 1);
  set_option(10, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(10, SOL_SOCKET, SO_RCVBUF, 100000);
  set_option(10, IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(10, IPPROTO_TCP, TCP_DEFER_ACCEPT, 3);
  sockaddr_in address = loopback(0);
  must(::bind(10, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0, "bind");
  must(::listen(10, 77) == 0, "listen");
}

TEST(listening_sockets_keep_address_and_options) {
  for (const How how : kEveryWay) {
    CallProcess primary(clean(open_tcp_server));
    const uint16_t port = port_of(primary.descriptor(10).get());
    CallProcess replica;
    const Captured captured = move_descriptors(primary, replica, how);
    CHECK_EQUAL(file_of(captured.image, 10).socket.backlog, 77);
    const UniqueFd server = replica.descriptor(10);
    CHECK_EQUAL(option(server.get(), SOL_SOCKET, SO_REUSEADDR), 1);
    CHECK_EQUAL(option(server.get(), SOL_SOCKET, SO_REUSEPORT), 1);
    CHECK_EQUAL(option(server.get(), SOL_SOCKET, SO_KEEPALIVE), 1);
    CHECK_EQUAL(option(server.get(), SOL_SOCKET, SO_RCVBUF), 200000);
    CHECK_EQUAL(option(server.get(), IPPROTO_TCP, TCP_NODELAY), 1);
    CHECK_EQUAL(option(server.get(), IPPROTO_TCP, TCP_DEFER_ACCEPT), 3);
    tcp_info info{};
    socklen_t size = sizeof info;
    ::getsockopt(server.get(), IPPROTO_TCP, TCP_INFO, &info, &size);
    CHECK_EQUAL(info.tcpi_sacked, 77u);
    const UniqueFd client = connect_to(port);
    CHECK_EQUAL(::write(client.get(), "hello", 5), 5);
    pollfd waiting{server.get(), POLLIN, 0};
    CHECK_EQUAL(::poll(&waiting, 1, 2000), 1);
    const UniqueFd accepted(::accept(server.get(), nullptr, nullptr));
    CHECK_EQUAL(read_some(accepted.get()), "hello");
  }
}

TEST(established_connections_are_handed_over_or_reset) {
  for (const How how : kEveryWay) {
    CallProcess primary(clean([] {
      place(::socket(AF_INET, SOCK_STREAM, 0), 10);
      sockaddr_in address = loopback(0);
      must(::bind(10, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0, "bind");
      must(::listen(10, 5) == 0, "listen");
      place(::epoll_create1(0), 20);
    }));
    const UniqueFd client = connect_to(port_of(primary.descriptor(10).get()));
    CHECK_EQUAL(primary.call(SYS_accept4, {10, 0, 0, 0}), 3);
    CHECK_EQUAL(primary.call(SYS_dup2, {3, 15}), 15);
    primary.call(SYS_close, {3});
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = 7;
    SyscallBatch batch;
    const uint64_t at = batch.put_value(event);
    batch.add("epoll_ctl", SYS_epoll_ctl, {20, EPOLL_CTL_ADD, 15, BatchArgument::data(at)});
    primary.run(batch);
    CHECK_EQUAL(::write(client.get(), "ping", 4), 4);
    CallProcess replica;
    const Captured captured = move_descriptors(primary, replica, how);
    CHECK(file_of(captured.image, 15).socket.connected);
    CHECK(ready(replica, 20) == std::vector<uint64_t>{7});
    const UniqueFd server = replica.descriptor(15);
    if (how == How::kHandOver) {
      CHECK_EQUAL(read_some(server.get()), "ping");
      CHECK_EQUAL(::write(server.get(), "pong", 4), 4);
      CHECK_EQUAL(read_some(client.get()), "pong");
    } else {
      CHECK_EQUAL(read_some(server.get()), "error Connection reset by peer");
      CHECK_EQUAL(read_some(server.get()), "");
      CHECK_EQUAL(::send(server.get(), "x", 1, MSG_NOSIGNAL), -1);
      CHECK_EQUAL(errno, EPIPE);
      const std::string end = read_some(client.get());
      CHECK(end.empty() || end == "error Connection reset by peer");
    }
  }
}

void open_unix_server(const std::string& path) {
  place(::socket(AF_UNIX, SOCK_STREAM, 0), 10);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strcpy(address.sun_path, path.c_str());
  must(::bind(10, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0, "bind");
  must(::chmod(path.c_str(), 0620) == 0, "chmod");
  must(::listen(10, 9) == 0, "listen");
}

TEST(unix_and_udp_servers_can_be_reached) {
  for (const How how : kEveryWay) {
    const std::string path = scratch() + "/socket" + std::to_string(static_cast<int>(how));
    CallProcess primary(clean([&] {
      open_unix_server(path);
      place(::socket(AF_INET, SOCK_DGRAM, 0), 11);
      set_option(11, SOL_SOCKET, SO_BROADCAST, 1);
      sockaddr_in address = loopback(0);
      must(::bind(11, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0, "bind");
      address.sin_port = port_of(11);
      place(::socket(AF_INET, SOCK_DGRAM, 0), 12);
      must(::connect(12, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0, "connect");
      place(::socket(AF_NETLINK, SOCK_RAW, 0), 13);
    }));
    const uint16_t port = port_of(primary.descriptor(11).get());
    CallProcess replica;
    const Captured captured = move_descriptors(primary, replica, how);
    CHECK_EQUAL(file_of(captured.image, 10).socket.backlog, 9);
    const UniqueFd client(::socket(AF_UNIX, SOCK_STREAM, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strcpy(address.sun_path, path.c_str());
    CHECK_EQUAL(::connect(client.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    CHECK(replica.call(SYS_accept4, {10, 0, 0, 0}) >= 0);
    struct stat status {};
    CHECK(::stat(path.c_str(), &status) == 0 && (status.st_mode & 0777) == 0620);
    CHECK_EQUAL(port_of(replica.descriptor(11).get()), port);
    CHECK_EQUAL(option(replica.descriptor(11).get(), SOL_SOCKET, SO_BROADCAST), 1);
    CHECK_EQUAL(::write(replica.descriptor(12).get(), "datagram", 8), 8);
    CHECK_EQUAL(read_some(replica.descriptor(11).get()), "datagram");
    CHECK_EQUAL(option(replica.descriptor(13).get(), SOL_SOCKET, SO_DOMAIN), AF_NETLINK);
  }
}

TEST(sockets_of_the_other_family_are_restored) {
  for (const How how : kEveryWay) {
    CallProcess primary(clean([] {
      place(::socket(AF_INET6, SOCK_STREAM, 0), 10);
      set_option(10, IPPROTO_IPV6, IPV6_V6ONLY, 1);
      set_option(10, SOL_SOCKET, SO_REUSEADDR, 1);
      sockaddr_in6 address{};
      address.sin6_family = AF_INET6;
      address.sin6_addr = IN6ADDR_LOOPBACK_INIT;
      must(::bind(10, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0, "bind");
      must(::listen(10, 5) == 0, "listen");
      socklen_t size = sizeof address;
      ::getsockname(10, reinterpret_cast<sockaddr*>(&address), &size);
      place(::socket(AF_INET6, SOCK_STREAM, 0), 11);
      must(::connect(11, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0, "connect");
      place(::accept(10, nullptr, nullptr), 12);
      place(::socket(AF_INET6, SOCK_STREAM, 0), 13);
    }));
    CallProcess replica;
    move_descriptors(primary, replica, how);
    CHECK_EQUAL(option(replica.descriptor(10).get(), IPPROTO_IPV6, IPV6_V6ONLY), 1);
    CHECK_EQUAL(option(replica.descriptor(10).get(), SOL_SOCKET, SO_ACCEPTCONN), 1);
    if (how == How::kHandOver) {
      CHECK_EQUAL(::write(replica.descriptor(11).get(), "six", 3), 3);
      CHECK_EQUAL(read_some(replica.descriptor(12).get()), "six");
    } else {
      CHECK_EQUAL(read_some(replica.descriptor(11).get()), "error Connection reset by peer");
    }
    CHECK_EQUAL(option(replica.descriptor(13).get(), SOL_SOCKET, SO_DOMAIN), AF_INET6);
  }
}

TEST(sixty_connections_cost_little) {
  CallProcess primary(clean([] {
    place(::socket(AF_INET, SOCK_STREAM, 0), 10);
    sockaddr_in address = loopback(0);
    must(::bind(10, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0, "bind");
    must(::listen(10, 100) == 0, "listen");
    place(::epoll_create1(0), 11);
    const uint16_t port = port_of(10);
    for (int i = 0; i < 60; ++i) {
      // The clients are in the process too, but closed at once: what is left is established.
      UniqueFd client = connect_to(port);
      place(::accept(10, nullptr, nullptr), 20 + i);
      epoll_event event{};
      event.events = EPOLLIN;
      must(::epoll_ctl(11, EPOLL_CTL_ADD, 20 + i, &event) == 0, "epoll_ctl");
    }
  }));
  const auto capture = DescriptorCapture::create();
  Captured captured = capture_group(*capture, {primary.pid()}, {primary.pid()});
  uint64_t best_capture = UINT64_MAX;
  uint64_t best_take = UINT64_MAX;
  uint64_t best_install = UINT64_MAX;
  for (int i = 0; i < 60; ++i) {
    GroupImage image;
    image.processes.emplace_back().pid = primary.pid();
    DescriptorCaptureInput input = captured.input;
    input.refusals = nullptr;
    uint64_t started = now_ns();
    capture->capture(input, image);
    best_capture = std::min(best_capture, now_ns() - started);
    if (i % 10 != 0) continue;
    CallProcess replica;
    image.processes[0].pid = replica.pid();
    PromoteInput promote;
    promote.image = &image;
    promote.exact = true;
    started = now_ns();
    promote.handed = DescriptorCapture::take(captured.input, image);
    best_take = std::min(best_take, now_ns() - started);
    ReplicaProcess* const processes[] = {&replica};
    started = now_ns();
    (void)install_descriptors(promote, processes);
    best_install = std::min(best_install, now_ns() - started);
  }
  note("65 descriptors: capture " + std::to_string(best_capture / 1000) + " us, take " +
       std::to_string(best_take / 1000) + " us, install " + std::to_string(best_install / 1000) +
       " us");
  if (slowness() > 1) return;
  CHECK(best_capture < 2'000'000 && best_install < 3'000'000);
}

}  // namespace
}  // namespace replpage::testing
