// Clocks and waits for a moment of theirs, in a program whose clocks are not the machine's
// (argument "shifted": hours ahead of it, by a time namespace) or are: no clock steps back, and a
// futex, a sleep, a timerfd and a POSIX timer end at the deadline that they were given, not before
// and not much later; a period keeps its beat.
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/timerfd.h>

#include "victim.h"

enum { kFutex, kSleep, kTimer, kBeat, kKinds };
static const char* const names[] = {"futex", "clock_nanosleep", "timer", "timerfd"};

static const int64_t kSecondNs = 1000000000;
static const int64_t kStepNs = 370 * 1000000;
static const int64_t kBeatNs = 130 * 1000000;
// A promotion goes back to an epoch, whose deadlines may have passed meanwhile.
static const int64_t kLateNs = 5 * 1000000000ll;
static const int64_t kLeapNs = 60 * 1000000000ll;
static const int64_t kShiftNs = 7 * 3600 * 1000000000ll;

static int64_t now_by(clockid_t clock) {
  struct timespec value;
  VICTIM_CHECK(clock_gettime(clock, &value) == 0, "clock %d", clock);
  return (int64_t)value.tv_sec * kSecondNs + value.tv_nsec;
}

static struct timespec at(int64_t ns) {
  return (struct timespec){(time_t)(ns / kSecondNs), (long)(ns % kSecondNs)};
}

static void judge(int kind, clockid_t clock, int64_t deadline) {
  int64_t late = now_by(clock) - deadline;
  VICTIM_CHECK(late >= 0, "%s ended %ld us early", names[kind], (long)(-late / 1000));
  VICTIM_CHECK(late < kLateNs, "%s ended %ld ms late", names[kind], (long)(late / 1000000));
  atomic_fetch_add(&victim_status->counters[kind], 1);
}

static void* wait_on_futex(void* unused) {
  (void)unused;
  static uint32_t word;
  for (int64_t deadline = now_by(CLOCK_MONOTONIC) + kStepNs;; deadline += kStepNs) {
    if (deadline < now_by(CLOCK_MONOTONIC)) deadline = now_by(CLOCK_MONOTONIC) + kStepNs;
    struct timespec end = at(deadline);
    long result = -1;
    do {
      result = syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, 0, &end, NULL,
                       FUTEX_BITSET_MATCH_ANY);
    } while (result < 0 && errno == EINTR);
    VICTIM_CHECK(result < 0 && errno == ETIMEDOUT, "futex: %ld", result);
    judge(kFutex, CLOCK_MONOTONIC, deadline);
  }
  return NULL;
}

static void* sleep_until(void* unused) {
  (void)unused;
  for (;;) {
    int64_t deadline = now_by(CLOCK_BOOTTIME) + kStepNs;
    struct timespec end = at(deadline);
    int result = EINTR;
    while (result == EINTR) {
      result = clock_nanosleep(CLOCK_BOOTTIME, TIMER_ABSTIME, &end, NULL);
    }
    VICTIM_CHECK(result == 0, "clock_nanosleep: %d", result);
    judge(kSleep, CLOCK_BOOTTIME, deadline);
  }
  return NULL;
}

// By a signal that the thread waits for.
static void* wait_for_timer(void* unused) {
  (void)unused;
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN);
  struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN};
  timer_t timer;
  VICTIM_CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0, "timer_create");
  for (;;) {
    int64_t deadline = now_by(CLOCK_MONOTONIC) + kStepNs;
    struct itimerspec value = {.it_value = at(deadline)};
    VICTIM_CHECK(timer_settime(timer, TIMER_ABSTIME, &value, NULL) == 0, "timer_settime");
    int result = -1;
    do {
      result = sigwaitinfo(&set, NULL);
    } while (result < 0 && errno == EINTR);
    VICTIM_CHECK(result == SIGRTMIN, "signal %d", result);
    judge(kTimer, CLOCK_MONOTONIC, deadline);
  }
  return NULL;
}

// The beats counted are those that the clock says have passed.
static void* count_beats(void* unused) {
  (void)unused;
  int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
  VICTIM_CHECK(fd >= 0, "timerfd_create");
  int64_t start = now_by(CLOCK_MONOTONIC), counted = 0;
  struct itimerspec value = {.it_interval = at(kBeatNs), .it_value = at(start + kBeatNs)};
  VICTIM_CHECK(timerfd_settime(fd, TFD_TIMER_ABSTIME, &value, NULL) == 0, "timerfd_settime");
  for (;;) {
    int64_t before = (now_by(CLOCK_MONOTONIC) - start) / kBeatNs;
    uint64_t beats = 0;
    ssize_t got = -1;
    do {
      got = read(fd, &beats, sizeof beats);
    } while (got < 0 && errno == EINTR);
    VICTIM_CHECK(got == sizeof beats, "read of the timerfd: %zd", got);
    counted += (int64_t)beats;
    int64_t passed = (now_by(CLOCK_MONOTONIC) - start) / kBeatNs;
    VICTIM_CHECK(counted <= passed, "%ld beats, and %ld have passed", (long)counted, (long)passed);
    VICTIM_CHECK(counted >= before, "%ld beats, and %ld had passed", (long)counted, (long)before);
    atomic_fetch_add(&victim_status->counters[kBeat], 1);
  }
  return NULL;
}

// Those that are executed live by other clocks (time_namespaces(7)).
static void shift_clocks(char** argv) {
  char text[128];
  int fd = -1;
  int length = snprintf(text, sizeof text, "monotonic %ld 500000000\nboottime %ld 250000000\n",
                        (long)(kShiftNs / kSecondNs), (long)(kShiftNs / kSecondNs));
  if (unshare(CLONE_NEWTIME) != 0 || (fd = open("/proc/self/timens_offsets", O_WRONLY)) < 0 ||
      write(fd, text, (size_t)length) != length) {
    victim_skip("a time namespace cannot be made here");
  }
  close(fd);
  char* arguments[] = {argv[0], argv[1], (char[]){"inside"}, NULL};
  execv("/proc/self/exe", arguments);
  victim_skip("it cannot be executed anew");
}

int main(int argc, char** argv) {
  victim_start(argc, argv);
  if (argc > 2 && strcmp(argv[2], "shifted") == 0) shift_clocks(argv);
  if (argc > 2 && now_by(CLOCK_MONOTONIC) < kShiftNs) {
    victim_skip("execve(2) does not enter the time namespace here");
  }
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN);
  sigprocmask(SIG_BLOCK, &set, NULL);
  static const clockid_t clocks[] = {CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, CLOCK_BOOTTIME};
  enum { kClocks = sizeof clocks / sizeof clocks[0] };
  static void* (*const waits[])(void*) = {wait_on_futex, sleep_until, wait_for_timer, count_beats};
  for (int kind = 0; kind < kKinds; kind++) {
    pthread_t thread;
    VICTIM_CHECK(pthread_create(&thread, NULL, waits[kind], NULL) == 0, "no thread");
  }
  int64_t last[kClocks] = {0};
  victim_ready();
  for (;;) {
    uint64_t seen[kKinds];
    for (int kind = 0; kind < kKinds; kind++) {
      seen[kind] = atomic_load(&victim_status->counters[kind]);
    }
    for (int kind = 0; kind < kKinds; kind++) {
      victim_say("waiting for %s", names[kind]);
      while (atomic_load(&victim_status->counters[kind]) == seen[kind]) {
        for (int i = 0; i < kClocks; i++) {
          int64_t now = now_by(clocks[i]);
          VICTIM_CHECK(now >= last[i], "clock %d went back by %ld us", clocks[i],
                       (long)((last[i] - now) / 1000));
          VICTIM_CHECK(last[i] == 0 || now - last[i] < kLeapNs, "clock %d leapt by %ld ms",
                       clocks[i], (long)((now - last[i]) / 1000000));
          last[i] = now;
        }
        victim_pace();
      }
    }
    victim_round();
  }
}
