// A service address that moves between hosts, and what its clients notice.
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>

#include "core/address/announcement.h"
#include "core/address/interface_address.h"
#include "core/address/traffic_drop.h"
#include "core/base/clock.h"
#include "core/base/sys_error.h"
#include "test/network_fixture.h"

namespace replpage {
namespace {

using namespace testing;

constexpr uint16_t kPort = 4242;

// Two that may have the address, and a client.
struct Network {
  TestHub hub;
  TestHost a{hub, 1};
  TestHost b{hub, 2};
  TestHost client{hub, 3};
};

// poll(2) for `events`; ms.
bool comes(const UniqueFd& socket, short events, int within_ms) {
  pollfd one{socket.get(), events, 0};
  return ::poll(&one, 1, within_ms * slowness()) == 1 && (one.revents & events) != 0;
}

int pending_error(const UniqueFd& socket) {
  int error = 0;
  socklen_t size = sizeof error;
  CHECK(::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &size) == 0);
  return error;
}

bool connects(const UniqueFd& socket, int within_ms) {
  return comes(socket, POLLOUT, within_ms) && pending_error(socket) == 0;
}

UniqueFd accepted(const UniqueFd& listener) {
  UniqueFd made(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  CHECK(made.valid());
  return made;
}

// Gone without a word to the other side.
void close_silently(UniqueFd& connection) {
  const int on = 1;
  CHECK(::setsockopt(connection.get(), IPPROTO_TCP, TCP_REPAIR, &on, sizeof on) == 0);
  connection.reset();
}

uint8_t tcp_state(const UniqueFd& socket) {
  tcp_info info{};
  socklen_t size = sizeof info;
  CHECK(::getsockopt(socket.get(), IPPROTO_TCP, TCP_INFO, &info, &size) == 0);
  return info.tcpi_state;
}

std::string neighbour_of(const TestHost& host, const ServiceAddress& address) {
  return host.told_by_ip("neigh show to " + address.host() + " dev eth0");
}

// Whether the client's table names that host, within a quarter of a second.
bool becomes_neighbour(const Network& net, const ServiceAddress& address, const TestHost& host) {
  const uint64_t deadline = now_us() + 250'000u * static_cast<unsigned>(slowness());
  while (neighbour_of(net.client, address).find(host.mac()) == std::string::npos) {
    if (now_us() > deadline) return false;
    ::usleep(1000);
  }
  return true;
}

void moves(const std::string& text) {
  const Network net;
  const ServiceAddress address = parse_service_address(text);
  const std::string any = address.family == AF_INET ? "0.0.0.0" : "::";
  const SocketAddress service(address.host(), kPort);
  const UniqueFd at_a = listen_at(net.a, {any, kPort});
  const UniqueFd at_b = listen_at(net.b, {any, kPort});
  net.a.in([&] { CHECK(take_address(address)); });
  CHECK(connects(connect_from(net.client, service), 3000));
  accepted(at_a);
  CHECK(neighbour_of(net.client, address).find(net.a.mac()) != std::string::npos);
  net.a.in([&] { CHECK(give_up_address(address)); });
  net.b.in([&] { CHECK(take_address(address)); });
  // Nobody has been told yet.
  ::usleep(20'000);
  CHECK(neighbour_of(net.client, address).find(net.a.mac()) != std::string::npos);
  const uint64_t began = now_us();
  AddressAnnouncer announcer(net.b.in([&] { return AddressAnnouncer(address); }));
  note("the constructor took " + std::to_string(now_us() - began) + " us");
  CHECK(becomes_neighbour(net, address, net.b));
  CHECK(connects(connect_from(net.client, service), 1000));
  accepted(at_b);
  CHECK(!comes(at_a, POLLIN, 0));
}

TEST(address_moves_and_neighbours_follow_at_once) { moves("10.9.0.9/24@eth0"); }

TEST(address_of_ipv6_moves_and_neighbours_follow_at_once) { moves("fd09::9/64@eth0"); }

TEST(address_announcements_are_repeated_and_block_nobody) {
  const Network net;
  const ServiceAddress address = parse_service_address("10.9.0.9/24@eth0");
  net.a.in([&] { CHECK(take_address(address)); });
  const uint64_t began = now_us();
  {
    const AddressAnnouncer announcer = net.a.in([&] { return AddressAnnouncer(address); });
    CHECK_EQUAL(announcer.rounds(), 1u);
    ::usleep(500'000);
    CHECK(announcer.rounds() >= 2);
    CHECK_EQUAL(announcer.failed(), 0u);
  }
  // It did not wait for the rounds that were left.
  CHECK(now_us() - began < 2'000'000u * static_cast<unsigned>(slowness()));
  CHECK(net.a.ip("link set eth0 down"));
  const AddressAnnouncer down = net.a.in([&] { return AddressAnnouncer(address); });
  CHECK_EQUAL(down.failed(), 1u);
}

TEST(address_drop_lets_no_reset_out) {
  for (const char* text : {"10.9.0.9/24@eth0", "fd09::9/64@eth0"}) {
    const Network net;
    const ServiceAddress address = parse_service_address(text);
    const SocketAddress service(address.host(), kPort);
    net.a.in([&] { CHECK(take_address(address)); });
    UniqueFd listener = listen_at(net.a, service);
    const UniqueFd client = connect_from(net.client, service);
    CHECK(connects(client, 3000));
    UniqueFd connection = accepted(listener);
    const uint64_t began = now_us();
    TrafficDrop drop = net.a.in([&] { return TrafficDrop(address); });
    const uint64_t set = now_us();
    close_silently(connection);
    listener.reset();
    CHECK(::send(client.get(), "x", 1, 0) == 1);
    const UniqueFd late = connect_from(net.client, service);
    CHECK(!comes(client, POLLIN | POLLHUP | POLLERR, 400));
    CHECK(!comes(late, POLLOUT | POLLHUP | POLLERR, 100));
    CHECK_EQUAL(int{tcp_state(client)}, 1);  // established
    // The address itself can be used meanwhile, and its neighbours find it.
    listener = listen_at(net.a, service);
    CHECK(net.client.ip("neigh flush dev eth0"));
    const uint64_t lifting = now_us();
    drop.lift();
    note("set in " + std::to_string(set - began) + " us, lifted in " +
         std::to_string(now_us() - lifting) + " us");
    // Who came in the meantime is answered when its next try comes; the connection that has no
    // socket any more shows that the drop is what kept the reset.
    CHECK(connects(late, 5000));
    CHECK(comes(client, POLLERR | POLLHUP, 5000));
    CHECK_EQUAL(pending_error(client), ECONNRESET);
  }
}

TEST(address_drop_goes_with_its_process) {
  const Network net;
  const ServiceAddress address = parse_service_address("10.9.0.9/24@eth0");
  const SocketAddress service(address.host(), kPort);
  net.a.in([&] { CHECK(take_address(address)); });
  const UniqueFd listener = listen_at(net.a, service);
  int ready[2];
  CHECK(::pipe2(ready, O_CLOEXEC) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    std::optional<TrafficDrop> drop;
    net.a.in([&] { drop.emplace(address); });
    (void)!::write(ready[1], "r", 1);
    for (;;) ::pause();
  }
  char byte = 0;
  CHECK(::read(ready[0], &byte, 1) == 1);
  const UniqueFd client = connect_from(net.client, service);
  CHECK(!connects(client, 300));
  CHECK(::kill(child, SIGKILL) == 0);
  CHECK(::waitpid(child, nullptr, 0) == child);
  CHECK(connects(connect_from(net.client, service), 1000));
}

TEST(address_drop_concerns_no_other_address) {
  const Network net;
  const ServiceAddress address = parse_service_address("10.9.0.9/24@eth0");
  net.a.in([&] { CHECK(take_address(address)); });
  const UniqueFd listener = listen_at(net.a, {"0.0.0.0", kPort});
  std::optional<TrafficDrop> drop;
  net.a.in([&] { drop.emplace(address); });
  CHECK(connects(connect_from(net.client, {"10.9.0.1", kPort}), 1000));
  CHECK(!connects(connect_from(net.client, {"10.9.0.9", kPort}), 300));
  // Nor does one drop lift another's.
  std::optional<TrafficDrop> second;
  net.a.in([&] { second.emplace(address); });
  drop.reset();
  CHECK(!connects(connect_from(net.client, {"10.9.0.9", kPort}), 300));
  second.reset();
  CHECK(connects(connect_from(net.client, {"10.9.0.9", kPort}), 1000));
}

}  // namespace
}  // namespace replpage
