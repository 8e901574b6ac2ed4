// Event descriptors: eventfd (a count and a semaphore), timerfd (periodic, far one-shot), signalfd
// with a signal pending, inotify with an event unread, and an epoll that watches all of them, edge
// and level triggered, with one-shot entries and an epoll inside.
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

#include "victim.h"

enum Source {
  kCount,
  kSemaphore,
  kPeriodic,
  kFar,
  kSignal,
  kInotify,
  kEdge,
  kOnce,
  kInner,
  kSources
};
static const char* const names[] = {
    "eventfd", "semaphore",           "periodic timerfd", "far timerfd", "signalfd",
    "inotify", "edge-triggered pipe", "one-shot pipe",    "inner epoll"};
static int fds[kSources];
static int epoll;
static int edge_in, once_in, inner_event;
static uint64_t timer_start;
static uint64_t expirations;
static uint64_t far_deadline;

static void watch(enum Source source, uint32_t events) {
  struct epoll_event event = {.events = events, .data.u64 = 1000u + source};
  VICTIM_CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, fds[source], &event) == 0, "watching the %s",
               names[source]);
}

static int make_timer(uint64_t first_ns, uint64_t period_ns) {
  int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
  struct itimerspec value = {{0, (long)period_ns},
                             {(time_t)(first_ns / 1000000000u), (long)(first_ns % 1000000000u)}};
  VICTIM_CHECK(timerfd_settime(fd, 0, &value, NULL) == 0, "timerfd");
  return fd;
}

static void touch(uint64_t number) {
  char name[32];
  char path[PATH_MAX];
  snprintf(name, sizeof name, "watched/%lu", number);
  victim_path(path, sizeof path, name);
  int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
  VICTIM_CHECK(fd >= 0, "open");
  close(fd);
  unlink(path);
}

static void set_up(void) {
  epoll = epoll_create1(EPOLL_CLOEXEC);
  fds[kCount] = eventfd(0, EFD_NONBLOCK);
  fds[kSemaphore] = eventfd(5, EFD_NONBLOCK | EFD_SEMAPHORE);
  timer_start = victim_now_ns();
  fds[kPeriodic] = make_timer(5000000, 5000000);
  fds[kFar] = make_timer(3600ull * 1000000000u, 0);
  far_deadline = victim_now_ns() + 3600ull * 1000000000u;
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN);
  sigprocmask(SIG_BLOCK, &set, NULL);
  fds[kSignal] = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  char path[PATH_MAX];
  victim_path(path, sizeof path, "watched");
  mkdir(path, 0700);
  fds[kInotify] = inotify_init1(IN_NONBLOCK);
  VICTIM_CHECK(inotify_add_watch(fds[kInotify], path, IN_CREATE) == 1, "inotify");
  int ends[2];
  VICTIM_CHECK(pipe2(ends, O_NONBLOCK) == 0, "pipe");
  fds[kEdge] = ends[0];
  edge_in = ends[1];
  VICTIM_CHECK(pipe2(ends, O_NONBLOCK) == 0, "pipe");
  fds[kOnce] = ends[0];
  once_in = ends[1];
  fds[kInner] = epoll_create1(0);
  inner_event = eventfd(0, EFD_NONBLOCK);
  struct epoll_event event = {.events = EPOLLIN, .data.u64 = 99};
  epoll_ctl(fds[kInner], EPOLL_CTL_ADD, inner_event, &event);
  for (enum Source source = 0; source < kSources; source++) {
    watch(source, EPOLLIN | (source == kEdge ? EPOLLET : source == kOnce ? EPOLLONESHOT : 0));
  }
}

// Waits until the epoll has told of `source`; what else it tells of is left alone.
static void await_event(enum Source source) {
  victim_say("waiting for the %s", names[source]);
  uint64_t start = victim_now_ns();
  while (victim_now_ns() - start < 20000000000u) {
    struct epoll_event events[16];
    int count = epoll_wait(epoll, events, 16, 1000);
    VICTIM_CHECK(count >= 0 || errno == EINTR, "epoll_wait");
    for (int i = 0; i < count; i++) {
      VICTIM_CHECK(events[i].data.u64 >= 1000 && events[i].data.u64 < 1000 + kSources,
                   "epoll tells of %lu", events[i].data.u64);
      if (events[i].data.u64 == 1000u + source) {
        return;
      }
    }
  }
  victim_fail("the epoll never told of the %s", names[source]);
}

static void check_events(uint64_t round) {
  uint64_t value = round + 1;
  VICTIM_CHECK(write(fds[kCount], &value, 8) == 8, "eventfd");
  await_event(kCount);
  VICTIM_CHECK(read(fds[kCount], &value, 8) == 8 && value == round + 1, "eventfd gave %lu", value);
  VICTIM_CHECK(read(fds[kSemaphore], &value, 8) == 8 && value == 1, "semaphore gave %lu", value);
  value = 1;
  VICTIM_CHECK(write(fds[kSemaphore], &value, 8) == 8, "semaphore");
  value = 1;
  VICTIM_CHECK(write(inner_event, &value, 8) == 8, "inner eventfd");
  await_event(kInner);
  struct epoll_event event;
  VICTIM_CHECK(epoll_wait(fds[kInner], &event, 1, 0) == 1 && event.data.u64 == 99, "inner epoll");
  VICTIM_CHECK(read(inner_event, &value, 8) == 8 && value == 1, "inner eventfd gave %lu", value);
}

static void check_timers(void) {
  uint64_t count = 0;
  await_event(kPeriodic);
  VICTIM_CHECK(read(fds[kPeriodic], &count, 8) == 8, "timerfd");
  expirations += count;
  // As many expirations as periods went by: none is lost, none invented.
  uint64_t due = (victim_now_ns() - timer_start) / 5000000;
  VICTIM_CHECK(expirations <= due && expirations + 400 >= due, "%lu expirations of %lu",
               expirations, due);
  struct itimerspec left;
  timerfd_gettime(fds[kFar], &left);
  int64_t error = (int64_t)(victim_now_ns() + (uint64_t)left.it_value.tv_sec * 1000000000u +
                            (uint64_t)left.it_value.tv_nsec - far_deadline);
  VICTIM_CHECK(error < 100000000 && error > -100000000, "the far timer is off by %ld us",
               error / 1000);
}

// One signal is always pending while the round ends.
static void check_signal(uint64_t round) {
  struct signalfd_siginfo info;
  await_event(kSignal);
  VICTIM_CHECK(read(fds[kSignal], &info, sizeof info) == sizeof info, "signalfd");
  VICTIM_CHECK(info.ssi_signo == (unsigned)SIGRTMIN && (uint64_t)(unsigned)info.ssi_int == round,
               "signalfd gave signal %u value %d", info.ssi_signo, info.ssi_int);
  VICTIM_CHECK(read(fds[kSignal], &info, sizeof info) == -1 && errno == EAGAIN, "a second signal");
  union sigval next = {.sival_int = (int)round + 1};
  VICTIM_CHECK(sigqueue(getpid(), SIGRTMIN, next) == 0, "sigqueue");
}

static void check_inotify(uint64_t round) {
  char buffer[256] __attribute__((aligned(8)));
  char expected[32];
  snprintf(expected, sizeof expected, "%lu", round);
  await_event(kInotify);
  ssize_t got = read(fds[kInotify], buffer, sizeof(struct inotify_event) + 16);
  struct inotify_event* event = (void*)buffer;
  VICTIM_CHECK(got > 0 && event->wd == 1 && (event->mask & IN_CREATE) != 0, "inotify gave %zd",
               got);
  VICTIM_CHECK(strcmp(event->name, expected) == 0, "inotify told of %s, not %s", event->name,
               expected);
  touch(round + 1);
}

static void check_triggers(uint64_t round) {
  char byte = (char)round;
  VICTIM_CHECK(write(edge_in, &byte, 1) == 1, "write");
  await_event(kEdge);
  VICTIM_CHECK(read(fds[kEdge], &byte, 1) == 1 && byte == (char)round, "edge-triggered pipe");
  VICTIM_CHECK(write(once_in, &byte, 1) == 1, "write");
  if (round % 2 == 0) {
    await_event(kOnce);
  } else {  // not armed: nothing may come of it
    struct epoll_event events[16];
    int count = epoll_wait(epoll, events, 16, 0);
    for (int i = 0; i < count; i++) {
      VICTIM_CHECK(events[i].data.u64 != 1000u + kOnce, "a one-shot entry fired twice");
    }
    struct epoll_event again = {.events = EPOLLIN | EPOLLONESHOT, .data.u64 = 1000u + kOnce};
    char both[2];
    VICTIM_CHECK(read(fds[kOnce], both, 2) == 2, "one-shot pipe");
    VICTIM_CHECK(epoll_ctl(epoll, EPOLL_CTL_MOD, fds[kOnce], &again) == 0, "EPOLL_CTL_MOD");
  }
}

int main(int argc, char** argv) {
  victim_start(argc, argv);
  set_up();
  union sigval first = {.sival_int = 0};
  sigqueue(getpid(), SIGRTMIN, first);
  touch(0);
  victim_ready();
  for (uint64_t round = 0;; round++) {
    check_events(round);
    check_timers();
    check_signal(round);
    check_inotify(round);
    check_triggers(round);
    victim_round();
  }
}
