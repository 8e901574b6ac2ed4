// Asks a redis-server for keys by Zipf's law (exponent 0.99, as YCSB does), 95 % GET and 5 % SET:
//   zipf_load COUNTERS PORT KEYS CONNECTIONS
// Each connection has one request under way. Counter 0: answers. Counter 1: errors among them.
// The popular keys are spread over the key space.
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "bench.h"

enum { kConnectionsMax = 64, kValueBytes = 100, kSetsPercent = 5 };
static const double kExponent = 0.99;

static uint64_t keys, random_state = 88172645463325252u;
static double zeta_all, alpha, eta, second_limit;

static uint64_t mixed(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

static uint64_t next_random(void) {
  random_state += 0x9e3779b97f4a7c15u;
  return mixed(random_state);
}

// J. Gray et al., Quickly generating billion-record synthetic databases, SIGMOD 1994.
static void prepare_zipf(void) {
  for (uint64_t i = 1; i <= keys; i++) zeta_all += 1 / pow((double)i, kExponent);
  double zeta_two = 1 + 1 / pow(2, kExponent);
  alpha = 1 / (1 - kExponent);
  eta = (1 - pow(2 / (double)keys, 1 - kExponent)) / (1 - zeta_two / zeta_all);
  second_limit = 1 + pow(0.5, kExponent);
}

static uint64_t next_key(void) {
  double u = (double)(next_random() >> 11) / (double)(1ull << 53);
  double place = u * zeta_all;
  uint64_t rank = place < 1              ? 0
                  : place < second_limit ? 1
                                         : (uint64_t)((double)keys * pow(eta * u - eta + 1, alpha));
  return mixed(rank) % keys;
}

static int connect_to(int port) {
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  int one = 1;
  if (fd < 0 || connect(fd, (struct sockaddr*)&at, sizeof at) != 0) return -1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  return fd;
}

static int ask(int fd) {
  char request[256];
  char value[kValueBytes + 1];
  unsigned long long key = next_key();
  int length;
  if (next_random() % 100 < kSetsPercent) {
    memset(value, 'y', kValueBytes);
    value[kValueBytes] = 0;
    length =
        snprintf(request, sizeof request, "*3\r\n$3\r\nSET\r\n$16\r\nkey:%012llu\r\n$%d\r\n%s\r\n",
                 key, kValueBytes, value);
  } else {
    length = snprintf(request, sizeof request, "*2\r\n$3\r\nGET\r\n$16\r\nkey:%012llu\r\n", key);
  }
  return send(fd, request, (size_t)length, MSG_NOSIGNAL) == length;
}

int main(int argc, char** argv) {
  _Atomic uint64_t* counters = bench_counters(argc, argv);
  if (argc < 5) return 2;
  keys = strtoull(argv[3], NULL, 10);
  int count = atoi(argv[4]);
  struct pollfd items[kConnectionsMax];
  if (keys < 3 || count < 1 || count > kConnectionsMax) return 2;
  prepare_zipf();
  for (int i = 0; i < count; i++) {
    items[i] = (struct pollfd){.fd = connect_to(atoi(argv[2])), .events = POLLIN};
    if (items[i].fd < 0 || !ask(items[i].fd)) return 1;
  }
  for (;;) {
    if (poll(items, (nfds_t)count, -1) < 0 && errno != EINTR) return 1;
    for (int i = 0; i < count; i++) {
      if (items[i].revents == 0) continue;
      char answer[512];
      ssize_t got = recv(items[i].fd, answer, sizeof answer, 0);
      if (got <= 0) return 1;
      // +OK, or $100, the value and an end: the end comes last, whatever it is cut into.
      if (answer[got - 1] != '\n' || (got == 6 && answer[0] == '$')) continue;
      if (answer[0] == '-') atomic_fetch_add(&counters[1], 1);
      atomic_fetch_add(&counters[0], 1);
      if (!ask(items[i].fd)) return 1;
    }
  }
}
