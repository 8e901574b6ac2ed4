// One thread per blocking system call. None may see an error it would not have seen undisturbed
// (signal(7) lists those calls that fail with EINTR after any stop; these are repeated), none may
// return early, none may hang, and what is read comes in order.
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "victim.h"

enum { kWaitMs = 150, kPipeBulk = 256 * 1024 };
static const uint64_t kWaitNs = kWaitMs * 1000000ull;

static int quiet_pipe[2];  // nothing is ever written to it
static int number_pipe[2];
static int bulk_pipe[2];
static int pair[2];
static int listener;
static struct sockaddr_un listener_address;
static socklen_t listener_length;
static _Atomic uint32_t futex_word;
static _Atomic uint32_t never_woken;
static _Atomic int suspended_tid;
static _Atomic uint32_t handled;

static void check_late(const char* what, uint64_t start, uint64_t wait_ns) {
  uint64_t took = victim_now_ns() - start;
  VICTIM_CHECK(took + 1000000 >= wait_ns, "%s came back after %lu of %lu us", what, took / 1000,
               wait_ns / 1000);
}

static void do_nanosleep(void) {
  struct timespec wait = {0, (long)kWaitNs};
  uint64_t start = victim_now_ns();
  VICTIM_CHECK(nanosleep(&wait, NULL) == 0, "nanosleep");
  check_late("nanosleep", start, kWaitNs);
}

static void do_absolute_sleep(void) {
  uint64_t start = victim_now_ns();
  uint64_t until = start + kWaitNs;
  struct timespec at = {(time_t)(until / 1000000000u), (long)(until % 1000000000u)};
  int error = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
  VICTIM_CHECK(error == 0, "clock_nanosleep: %s", strerror(error));
  check_late("clock_nanosleep", start, kWaitNs);
}

static void do_poll(void) {
  struct pollfd entry = {.fd = quiet_pipe[0], .events = POLLIN};
  uint64_t start = victim_now_ns();
  int got = poll(&entry, 1, kWaitMs);
  VICTIM_CHECK(got == 0, "poll gave %d", got);
  check_late("poll", start, kWaitNs);
}

static void do_ppoll(void) {
  struct pollfd entry = {.fd = quiet_pipe[0], .events = POLLIN};
  struct timespec wait = {0, (long)kWaitNs};
  uint64_t start = victim_now_ns();
  int got = ppoll(&entry, 1, &wait, NULL);
  VICTIM_CHECK(got == 0, "ppoll gave %d", got);
  check_late("ppoll", start, kWaitNs);
}

static void do_select(void) {
  fd_set set;
  FD_ZERO(&set);
  FD_SET(quiet_pipe[0], &set);
  struct timeval wait = {0, kWaitMs * 1000};
  uint64_t start = victim_now_ns();
  int got = select(quiet_pipe[0] + 1, &set, NULL, NULL, &wait);
  VICTIM_CHECK(got == 0, "select gave %d", got);
  check_late("select", start, kWaitNs);
}

static void do_futex_timeout(void) {
  struct timespec wait = {0, (long)kWaitNs};
  uint64_t start = victim_now_ns();
  long got = syscall(SYS_futex, &never_woken, FUTEX_WAIT_PRIVATE, 0, &wait, NULL, 0);
  VICTIM_CHECK(got == -1 && errno == ETIMEDOUT, "futex with a time-out gave %ld", got);
  check_late("futex with a time-out", start, kWaitNs);
}

static void do_futex_until(void) {
  uint64_t start = victim_now_ns();
  uint64_t until = start + kWaitNs;
  struct timespec at = {(time_t)(until / 1000000000u), (long)(until % 1000000000u)};
  long got = syscall(SYS_futex, &never_woken, FUTEX_WAIT_BITSET_PRIVATE, 0, &at, NULL,
                     FUTEX_BITSET_MATCH_ANY);
  VICTIM_CHECK(got == -1 && errno == ETIMEDOUT, "futex until a time gave %ld", got);
  check_late("futex until a time", start, kWaitNs);
}

static void do_futex_woken(void) {
  uint32_t seen = atomic_load(&futex_word);
  while (atomic_load(&futex_word) == seen) {
    long got = syscall(SYS_futex, &futex_word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
    VICTIM_CHECK(got == 0 || errno == EAGAIN, "futex gave %ld", got);
  }
}

static void do_read(void) {
  static uint64_t expected;
  uint64_t number = 0;
  ssize_t got = read(number_pipe[0], &number, sizeof number);
  VICTIM_CHECK(got == sizeof number, "read from a pipe gave %zd", got);
  VICTIM_CHECK(number == expected, "the pipe gave %lu, not %lu", number, expected);
  expected++;
}

// Blocks in write while the pipe is full; the other side drains it in bulk.
static void do_write(void) {
  static uint64_t words[kPipeBulk / 8];
  static uint64_t next;
  for (size_t i = 0; i < kPipeBulk / 8; i++) {
    words[i] = next++;
  }
  for (size_t done = 0; done < kPipeBulk;) {
    ssize_t put = write(bulk_pipe[1], (char*)words + done, kPipeBulk - done);
    VICTIM_CHECK(put > 0, "write to a pipe gave %zd", put);
    done += (size_t)put;
  }
}

static void do_drain(void) {
  static uint64_t expected;
  static uint64_t words[kPipeBulk / 8];
  usleep(20000);  // lets the writer block
  for (size_t done = 0; done < kPipeBulk;) {
    ssize_t got = read(bulk_pipe[0], (char*)words + done, kPipeBulk - done);
    VICTIM_CHECK(got > 0, "bulk read gave %zd", got);
    done += (size_t)got;
  }
  for (size_t i = 0; i < kPipeBulk / 8; i++) {
    VICTIM_CHECK(words[i] == expected, "the bulk pipe gave %lu, not %lu", words[i], expected);
    expected++;
  }
}

static void do_epoll(void) {
  static int epoll = -1;
  if (epoll < 0) {
    epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 7};
    epoll_ctl(epoll, EPOLL_CTL_ADD, quiet_pipe[0], &event);
  }
  uint64_t start = victim_now_ns();
  struct epoll_event event;
  int got = epoll_wait(epoll, &event, 1, kWaitMs);
  if (got < 0 && errno == EINTR) {
    atomic_fetch_add(&victim_status->interrupted, 1);
    return;
  }
  VICTIM_CHECK(got == 0, "epoll_wait gave %d", got);
  check_late("epoll_wait", start, kWaitNs);
}

static void do_sigtimedwait(void) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR2);
  struct timespec wait = {0, (long)kWaitNs};
  uint64_t start = victim_now_ns();
  int got = sigtimedwait(&set, NULL, &wait);
  VICTIM_CHECK(got == -1, "sigtimedwait gave %d", got);
  if (errno == EINTR) {
    atomic_fetch_add(&victim_status->interrupted, 1);
    return;
  }
  VICTIM_CHECK(errno == EAGAIN, "sigtimedwait");
  check_late("sigtimedwait", start, kWaitNs);
}

static void do_accept(void) {
  static uint64_t expected;
  uint64_t number = 0;
  int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
  VICTIM_CHECK(fd >= 0, "accept");
  ssize_t got = recv(fd, &number, sizeof number, 0);
  VICTIM_CHECK(got == sizeof number && number == expected, "the connection brought %lu, not %lu",
               number, expected);
  expected++;
  close(fd);
}

static void do_recv(void) {
  static uint64_t expected;
  uint64_t number = 0;
  ssize_t got = recv(pair[0], &number, sizeof number, 0);
  VICTIM_CHECK(got == sizeof number && number == expected, "recv gave %zd, number %lu, not %lu",
               got, number, expected);
  expected++;
}

static void do_wait(void) {
  pid_t child = fork();
  VICTIM_CHECK(child >= 0, "fork");
  if (child == 0) {
    struct timespec wait = {0, (long)kWaitNs / 2};
    nanosleep(&wait, NULL);
    _exit(9);
  }
  int status = 0;
  pid_t got = waitpid(child, &status, 0);
  VICTIM_CHECK(got == child && WIFEXITED(status) && WEXITSTATUS(status) == 9,
               "waitpid gave %d, status %#x", got, status);
}

static void note(int signal) {
  (void)signal;
  atomic_fetch_add(&handled, 1);
}

static void do_sigsuspend(void) {
  sigset_t none;
  sigfillset(&none);
  sigdelset(&none, SIGUSR1);
  uint32_t before = atomic_load(&handled);
  atomic_store(&suspended_tid, gettid());
  int got = sigsuspend(&none);
  VICTIM_CHECK(got == -1 && errno == EINTR, "sigsuspend gave %d", got);
  VICTIM_CHECK(atomic_load(&handled) != before, "sigsuspend came back without a signal");
}

struct Call {
  const char* name;
  void (*run)(void);
};

static const struct Call calls[] = {
    {"nanosleep", do_nanosleep},
    {"clock_nanosleep", do_absolute_sleep},
    {"poll", do_poll},
    {"ppoll", do_ppoll},
    {"select", do_select},
    {"futex with a time-out", do_futex_timeout},
    {"futex until a time", do_futex_until},
    {"futex woken", do_futex_woken},
    {"read of a pipe", do_read},
    {"write to a full pipe", do_write},
    {"drain of a full pipe", do_drain},
    {"epoll_wait", do_epoll},
    {"sigtimedwait", do_sigtimedwait},
    {"accept", do_accept},
    {"recv", do_recv},
    {"waitpid", do_wait},
    {"sigsuspend", do_sigsuspend},
};
enum { kCalls = sizeof calls / sizeof calls[0] };

static void* repeat(void* argument) {
  int slot = (int)(intptr_t)argument;
  for (;;) {
    calls[slot].run();
    atomic_fetch_add(&victim_status->counters[slot], 1);
  }
  return NULL;
}

static void* disturb(void* unused) {
  (void)unused;
  for (uint64_t number = 0;; number++) {
    usleep(30000);
    VICTIM_CHECK(write(number_pipe[1], &number, sizeof number) == sizeof number, "write");
    VICTIM_CHECK(send(pair[1], &number, sizeof number, 0) == sizeof number, "send");
    atomic_fetch_add(&futex_word, 1);
    syscall(SYS_futex, &futex_word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    VICTIM_CHECK(connect(fd, (void*)&listener_address, listener_length) == 0, "connect");
    VICTIM_CHECK(send(fd, &number, sizeof number, MSG_NOSIGNAL) == sizeof number, "send");
    close(fd);
    if (atomic_load(&suspended_tid) != 0) {
      syscall(SYS_tgkill, getpid(), atomic_load(&suspended_tid), SIGUSR1);
    }
  }
  return NULL;
}

static void set_up(void) {
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGUSR1);
  sigaddset(&mask, SIGUSR2);
  sigprocmask(SIG_SETMASK, &mask, NULL);
  struct sigaction action = {.sa_handler = note};
  sigaction(SIGUSR1, &action, NULL);
  VICTIM_CHECK(pipe(quiet_pipe) == 0 && pipe(number_pipe) == 0 && pipe(bulk_pipe) == 0, "pipe");
  VICTIM_CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0, "socketpair");
  listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  listener_address.sun_family = AF_UNIX;
  int length = snprintf(listener_address.sun_path + 1, 100, "victim-%d", getpid());
  listener_length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1u + (unsigned)length);
  VICTIM_CHECK(bind(listener, (void*)&listener_address, listener_length) == 0, "bind");
  VICTIM_CHECK(listen(listener, 16) == 0, "listen");
}

int main(int argc, char** argv) {
  static const char* names[kCalls];
  victim_start(argc, argv);
  set_up();
  pthread_t thread;
  for (intptr_t i = 0; i < kCalls; i++) {
    names[i] = calls[i].name;
    VICTIM_CHECK(pthread_create(&thread, NULL, repeat, (void*)i) == 0, "no thread");
  }
  VICTIM_CHECK(pthread_create(&thread, NULL, disturb, NULL) == 0, "no thread");
  victim_ready();
  for (;;) {
    victim_rounds_of_counters(names, kCalls);
  }
}
