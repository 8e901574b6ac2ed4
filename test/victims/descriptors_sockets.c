// Sockets: UNIX pairs of every type with something queued, listening TCP and UNIX sockets with
// their options and a connection waiting, established TCP on loopback with both ends here, UDP with
// options and a datagram queued.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "snapshot.h"

enum { kTypes = 3, kDepth = 20 };
static const int types[kTypes] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
static int pairs[kTypes][2];
static uint64_t pair_in[kTypes], pair_out[kTypes];
static int tcp_listener, unix_listener, path_listener, udp_receiver, udp_sender;
static int tcp_client, tcp_server;
static struct sockaddr_in tcp_address, udp_address;

static void set_option(int fd, int level, int option, int value) {
  VICTIM_CHECK(setsockopt(fd, level, option, &value, sizeof value) == 0, "option %d %d", level,
               option);
}

static void add_options(struct Snapshot* snapshot, const char* name, int fd) {
  static const int options[][2] = {
      {SOL_SOCKET, SO_REUSEADDR},  {SOL_SOCKET, SO_REUSEPORT},  {SOL_SOCKET, SO_KEEPALIVE},
      {SOL_SOCKET, SO_RCVBUF},     {SOL_SOCKET, SO_SNDBUF},     {SOL_SOCKET, SO_BROADCAST},
      {SOL_SOCKET, SO_PRIORITY},   {SOL_SOCKET, SO_ACCEPTCONN}, {SOL_SOCKET, SO_TYPE},
      {SOL_SOCKET, SO_TIMESTAMP},  {IPPROTO_TCP, TCP_NODELAY},  {IPPROTO_TCP, TCP_DEFER_ACCEPT},
      {IPPROTO_TCP, TCP_KEEPIDLE}, {IPPROTO_IP, IP_TTL},        {IPPROTO_IP, IP_TOS}};
  snapshot_add(snapshot, "%s:", name);
  for (size_t i = 0; i < sizeof options / sizeof options[0]; i++) {
    int value = -1;
    socklen_t length = sizeof value;
    int result = getsockopt(fd, options[i][0], options[i][1], &value, &length);
    snapshot_add(snapshot, " %d/%d=%d", options[i][0], options[i][1], result == 0 ? value : -1);
  }
  struct linger linger = {0, 0};
  struct timeval timeout = {0, 0};
  socklen_t length = sizeof linger;
  getsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, &length);
  length = sizeof timeout;
  getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, &length);
  struct sockaddr_storage address;
  memset(&address, 0, sizeof address);
  length = sizeof address;
  getsockname(fd, (void*)&address, &length);
  snapshot_add(snapshot, " linger %d %d timeout %ld.%06ld flags %x port %d\n", linger.l_onoff,
               linger.l_linger, timeout.tv_sec, timeout.tv_usec, fcntl(fd, F_GETFL),
               address.ss_family == AF_INET ? ((struct sockaddr_in*)&address)->sin_port : -1);
}

static void take(struct Snapshot* snapshot) {
  add_options(snapshot, "TCP listener", tcp_listener);
  add_options(snapshot, "UNIX listener", unix_listener);
  add_options(snapshot, "UNIX path listener", path_listener);
  add_options(snapshot, "UDP receiver", udp_receiver);
  add_options(snapshot, "TCP server end", tcp_server);
  add_options(snapshot, "UNIX pair", pairs[0][0]);
}

static void bind_loopback(int fd, struct sockaddr_in* address) {
  socklen_t length = sizeof *address;
  memset(address, 0, sizeof *address);
  address->sin_family = AF_INET;
  address->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  VICTIM_CHECK(bind(fd, (void*)address, length) == 0, "bind");
  VICTIM_CHECK(getsockname(fd, (void*)address, &length) == 0, "getsockname");
}

static void set_up_unix(void) {
  for (int i = 0; i < kTypes; i++) {
    VICTIM_CHECK(socketpair(AF_UNIX, types[i], 0, pairs[i]) == 0, "socketpair");
  }
  set_option(pairs[0][0], SOL_SOCKET, SO_SNDBUF, 400000);
  set_option(pairs[1][0], SOL_SOCKET, SO_SNDBUF, 400000);
  set_option(pairs[2][0], SOL_SOCKET, SO_SNDBUF, 400000);
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  int length = snprintf(address.sun_path + 1, 100, "victim-sockets-%d", getpid());
  unix_listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
  VICTIM_CHECK(
      bind(unix_listener, (void*)&address,
           (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1u + (unsigned)length)) == 0,
      "bind");
  VICTIM_CHECK(listen(unix_listener, 7) == 0, "listen");
  path_listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  VICTIM_CHECK(chdir(victim_directory) == 0, "chdir");
  strcpy(address.sun_path, "socket");
  VICTIM_CHECK(bind(path_listener, (void*)&address, sizeof address) == 0, "bind");
  VICTIM_CHECK(listen(path_listener, 3) == 0, "listen");
}

static int connect_tcp(void) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  VICTIM_CHECK(connect(fd, (void*)&tcp_address, sizeof tcp_address) == 0, "connect");
  return fd;
}

static void set_up_network(void) {
  tcp_listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  set_option(tcp_listener, SOL_SOCKET, SO_REUSEADDR, 1);
  set_option(tcp_listener, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(tcp_listener, SOL_SOCKET, SO_RCVBUF, 100000);
  set_option(tcp_listener, IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(tcp_listener, IPPROTO_TCP, TCP_KEEPIDLE, 77);
  struct linger linger = {1, 3};
  setsockopt(tcp_listener, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
  bind_loopback(tcp_listener, &tcp_address);
  VICTIM_CHECK(listen(tcp_listener, 9) == 0, "listen");
  tcp_client = connect_tcp();
  tcp_server = accept4(tcp_listener, NULL, NULL, SOCK_CLOEXEC);
  VICTIM_CHECK(tcp_server >= 0, "accept");
  udp_receiver = socket(AF_INET, SOCK_DGRAM, 0);
  udp_sender = socket(AF_INET, SOCK_DGRAM, 0);
  set_option(udp_receiver, SOL_SOCKET, SO_REUSEPORT, 1);
  set_option(udp_receiver, SOL_SOCKET, SO_TIMESTAMP, 1);
  set_option(udp_receiver, IPPROTO_IP, IP_TTL, 33);
  struct timeval timeout = {2, 500000};
  setsockopt(udp_receiver, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
  bind_loopback(udp_receiver, &udp_address);
  VICTIM_CHECK(connect(udp_sender, (void*)&udp_address, sizeof udp_address) == 0, "connect");
}

static void check_pairs(void) {
  for (int i = 0; i < kTypes; i++) {
    while (pair_in[i] - pair_out[i] < kDepth) {
      VICTIM_CHECK(send(pairs[i][0], &pair_in[i], 8, 0) == 8, "send");
      pair_in[i]++;
    }
    uint64_t number = 0;
    // Datagrams keep their borders, a stream gives the eight bytes asked for.
    ssize_t got = recv(pairs[i][1], &number, 8, types[i] == SOCK_STREAM ? MSG_WAITALL : MSG_TRUNC);
    VICTIM_CHECK(got == 8 && number == pair_out[i], "pair of type %d gave %zd: %lu, not %lu",
                 types[i], got, number, pair_out[i]);
    pair_out[i]++;
  }
}

static uint64_t receive_udp(void) {
  uint64_t number = 0;
  ssize_t got;
  do {  // with a time-out set, recv fails with EINTR after any stop
    got = recv(udp_receiver, &number, 8, 0);
  } while (got < 0 && errno == EINTR);
  VICTIM_CHECK(got == 8, "recv of a datagram gave %zd", got);
  return number;
}

// Goes round with one datagram, one connection and one message of the last round still queued.
static void check_network(uint64_t round) {
  uint64_t next = round + 1;
  uint64_t number = 0;
  VICTIM_CHECK(send(udp_sender, &next, 8, 0) == 8, "send");
  number = receive_udp();
  VICTIM_CHECK(number == round, "UDP brought %lu, not %lu", number, round);
  VICTIM_CHECK(send(tcp_client, &next, 8, 0) == 8, "send over TCP");
  VICTIM_CHECK(recv(tcp_server, &number, 8, MSG_WAITALL) == 8 && number == round,
               "TCP brought %lu, not %lu", number, round);
  static int waiting = -1;
  if (waiting >= 0) {
    int accepted = accept4(tcp_listener, NULL, NULL, SOCK_CLOEXEC);
    VICTIM_CHECK(accepted >= 0, "the waiting connection is gone");
    VICTIM_CHECK(recv(accepted, &number, 8, MSG_WAITALL) == 8 && number == round,
                 "the waiting connection brought %lu, not %lu", number, round);
    struct linger abort_it = {1, 0};  // leaves no TIME_WAIT behind
    setsockopt(accepted, SOL_SOCKET, SO_LINGER, &abort_it, sizeof abort_it);
    close(accepted);
    close(waiting);
  }
  waiting = connect_tcp();
  VICTIM_CHECK(send(waiting, &next, 8, 0) == 8, "send");
}

int main(int argc, char** argv) {
  victim_start(argc, argv);
  set_up_unix();
  set_up_network();
  static struct Snapshot before;
  static struct Snapshot now;
  take(&before);
  uint64_t zero = 0;
  VICTIM_CHECK(send(udp_sender, &zero, 8, 0) == 8 && send(tcp_client, &zero, 8, 0) == 8, "send");
  victim_ready();
  for (uint64_t round = 0;; round++) {
    check_pairs();
    check_network(round);
    now.used = 0;
    take(&now);
    snapshot_compare(&before, &now);
    victim_round();
    victim_pace();
  }
}
