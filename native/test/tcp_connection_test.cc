// Established TCP connections that move between hosts together with their address.
#include "core/image/tcp_connection.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>

#include <numeric>

#include "core/address/announcement.h"
#include "core/address/interface_address.h"
#include "core/address/traffic_drop.h"
#include "core/base/clock.h"
#include "core/base/sys_error.h"
#include "core/image/socket_capture.h"
#include "core/restore/open_files.h"
#include "test/network_fixture.h"

namespace replpage {
namespace {

using namespace testing;

constexpr size_t kQueueMax = 16 << 20;

// A service at an address of host a, with one connection of the client.
struct Service {
  explicit Service(const std::string& text)
      : address(parse_service_address(text)), at(address.host(), 4242) {
    a.in([&] { CHECK(take_address(address)); });
    listener = listen_at(a, at);
    client = connect_from(caller, at);
    pollfd one{client.get(), POLLOUT, 0};
    CHECK(::poll(&one, 1, 5000) == 1);
    server.reset(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    CHECK(server.valid());
  }

  // From a to b, as a move does it; gives how long nobody answered, in us.
  uint64_t move() {
    const uint64_t began = now_us();
    auto drop_here = a.in([&] { return std::make_unique<TrafficDrop>(address); });
    auto taken = take_connection(server.get(), kQueueMax);
    CHECK(taken.has_value());
    fall_silent(server.get());
    server.reset();
    listener.reset();
    a.in([&] { CHECK(give_up_address(address)); });
    // As it travels.
    Writer writer;
    writer(*taken);
    const Bytes encoded = writer.take();
    TcpConnection connection;
    Reader reader(encoded);
    reader(connection);
    auto drop_there = b.in([&] { return std::make_unique<TrafficDrop>(address); });
    b.in([&] {
      CHECK(take_address(address));
      server = make_connection(connection);
    });
    listener = listen_at(b, at);
    b.in([&] { announcer = std::make_unique<AddressAnnouncer>(address); });
    drop_there->lift();
    go_live(server.get(), connection);
    return now_us() - began;
  }

  TestHub hub;
  TestHost a{hub, 1};
  TestHost b{hub, 2};
  TestHost caller{hub, 3};
  ServiceAddress address;
  SocketAddress at;
  UniqueFd listener, client, server;
  std::unique_ptr<AddressAnnouncer> announcer;
};

Bytes pattern(size_t bytes, uint8_t from) {
  Bytes made(bytes);
  std::iota(made.begin(), made.end(), from);
  return made;
}

// Whatever comes until `bytes` are there; fails after seconds without any.
Bytes received(const UniqueFd& socket, size_t bytes) {
  Bytes all(bytes);
  for (size_t at = 0; at < bytes;) {
    pollfd one{socket.get(), POLLIN, 0};
    CHECK(::poll(&one, 1, 5000 * slowness()) == 1);
    const ssize_t got = ::recv(socket.get(), all.data() + at, bytes - at, MSG_DONTWAIT);
    CHECK(got > 0);
    at += static_cast<size_t>(got);
  }
  return all;
}

void send_all(const UniqueFd& socket, const Bytes& bytes) {
  CHECK_EQUAL(::send(socket.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes.size()));
}

void check_both_ways(Service& service) {
  for (uint8_t i = 0; i < 20; ++i) {
    send_all(service.client, pattern(1000, i));
    CHECK(received(service.server, 1000) == pattern(1000, i));
    send_all(service.server, pattern(3000, i));
    CHECK(received(service.client, 3000) == pattern(3000, i));
  }
}

void check_moves(const std::string& text) {
  Service service(text);
  check_both_ways(service);
  const uint64_t us = service.move();
  const uint64_t asked = now_us();
  send_all(service.client, pattern(10, 0));
  CHECK(received(service.server, 10) == pattern(10, 0));
  note("moved in " + std::to_string(us) + " us, next byte " + std::to_string(now_us() - asked) +
       " us later");
  check_both_ways(service);
  // And it ends as any other.
  service.server.reset();
  char byte = 0;
  pollfd one{service.client.get(), POLLIN, 0};
  CHECK(::poll(&one, 1, 5000 * slowness()) == 1);
  CHECK_EQUAL(::recv(service.client.get(), &byte, 1, 0), 0);
}

TEST(connection_moves_with_its_address) { check_moves("10.9.0.9/24@eth0"); }

TEST(connection_over_ipv6_moves_with_its_address) { check_moves("fd09::9/64@eth0"); }

TEST(connection_moves_with_what_is_in_its_queues) {
  Service service("10.9.0.9/24@eth0");
  const int small = 16 << 10;
  ::setsockopt(service.client.get(), SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
  // More than the other side takes: some of it is sent, some is not.
  const Bytes down = pattern(300'000, 7);
  const ssize_t put = ::send(service.server.get(), down.data(), down.size(), MSG_NOSIGNAL);
  CHECK(put > 0);
  send_all(service.client, pattern(5000, 3));
  ::usleep(50'000);
  service.move();
  CHECK(received(service.server, 5000) == pattern(5000, 3));
  Bytes expected = down;
  expected.resize(static_cast<size_t>(put));
  CHECK(received(service.client, expected.size()) == expected);
  check_both_ways(service);
}

TEST(connection_moves_while_its_client_sends) {
  Service service("10.9.0.9/24@eth0");
  {
    // Lost on its way: the client has sent it, and nobody has it.
    auto drop = service.a.in([&] { return std::make_unique<TrafficDrop>(service.address); });
    send_all(service.client, pattern(4000, 9));
    service.move();
  }
  CHECK(received(service.server, 4000) == pattern(4000, 9));
  check_both_ways(service);
}

// As an image has it.
OpenFileImage image_of(const UniqueFd& socket) {
  OpenFileImage file;
  CHECK_EQUAL(read_socket(socket.get(), file).refused, "");
  CHECK(take_tcp_connection(socket.get(), file, kQueueMax));
  return file;
}

void check_lives_on_from_an_image(const std::string& text) {
  Service service(text);
  const int on = 1;
  const int idle = 77;
  CHECK(::setsockopt(service.server.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0);
  CHECK(::setsockopt(service.server.get(), IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle) == 0);
  CHECK(::setsockopt(service.server.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0);
  check_both_ways(service);
  send_all(service.client, pattern(2000, 1));
  ::usleep(20'000);
  OpenFileImage file = image_of(service.server);
  fall_silent(service.server.get());
  service.server.reset();
  service.listener.reset();
  service.a.in([&] { CHECK(give_up_address(service.address)); });
  // On a node that has not its address it is one that was reset.
  service.b.in([&] { CHECK_EQUAL(::send(recreate::tcp(file).get(), "x", 1, MSG_NOSIGNAL), -1); });
  service.b.in([&] {
    CHECK(take_address(service.address));
    service.server = recreate::tcp(file);
    service.announcer = std::make_unique<AddressAnnouncer>(service.address);
  });
  CHECK(received(service.server, 2000) == pattern(2000, 1));
  check_both_ways(service);
  const auto option = [&](int level, int name) {
    int value = 0;
    socklen_t size = sizeof value;
    CHECK(::getsockopt(service.server.get(), level, name, &value, &size) == 0);
    return value;
  };
  CHECK_EQUAL(option(IPPROTO_TCP, TCP_NODELAY), 1);
  CHECK_EQUAL(option(IPPROTO_TCP, TCP_KEEPIDLE), 77);
  CHECK_EQUAL(option(SOL_SOCKET, SO_REUSEADDR), 1);
  CHECK_EQUAL(option(SOL_SOCKET, SO_BUF_LOCK), 0);
  // A damaged one is not believed.
  file.socket.queue.front().pop_back();
  bool refused = false;
  try {
    (void)recreate::tcp(file);
  } catch (const FormatError&) {
    refused = true;
  }
  CHECK(refused);
}

TEST(connection_in_an_image_lives_on_where_its_address_is) {
  check_lives_on_from_an_image("10.9.0.9/24@eth0");
  check_lives_on_from_an_image("fd09::9/64@eth0");
}

TEST(connection_that_was_taken_can_stay) {
  Service service("10.9.0.9/24@eth0");
  send_all(service.client, pattern(5000, 3));
  ::usleep(20'000);
  const auto taken = take_connection(service.server.get(), kQueueMax);
  CHECK(taken && taken->receive_queue == pattern(5000, 3));
  CHECK(received(service.server, 5000) == pattern(5000, 3));
  check_both_ways(service);
}

TEST(connection_that_cannot_be_taken_is_left_as_it_was) {
  Service service("10.9.0.9/24@eth0");
  CHECK(!take_connection(service.listener.get(), kQueueMax));
  send_all(service.client, pattern(5000, 3));
  ::usleep(20'000);
  bool refused = false;
  try {
    take_connection(service.server.get(), 4000);
  } catch (const SysError& error) {
    refused = error.error() == EMSGSIZE;
  }
  CHECK(refused);
  CHECK(received(service.server, 5000) == pattern(5000, 3));
  check_both_ways(service);
  ::shutdown(service.client.get(), SHUT_WR);
  ::usleep(20'000);
  CHECK(!take_connection(service.server.get(), kQueueMax));
  send_all(service.server, pattern(100, 1));
  CHECK(received(service.client, 100) == pattern(100, 1));
  // Nor is one made where its address is not.
  const auto elsewhere = [&] {
    TcpConnection connection;
    connection.local_address.assign(
        reinterpret_cast<const uint8_t*>(&service.at.storage),
        reinterpret_cast<const uint8_t*>(&service.at.storage) + service.at.size);
    connection.peer_address = connection.local_address;
    try {
      service.b.in([&] { make_connection(connection); });
      return 0;
    } catch (const SysError& error) {
      return error.error();
    }
  };
  CHECK_EQUAL(elsewhere(), EADDRNOTAVAIL);
}

}  // namespace
}  // namespace replpage
