// The protocol every victim follows.
//
// A victim sets one kernel behaviour up, then checks it for ever: every completed check is one
// round. Rounds and errors are counted in a page of a file (argv[1], on tmpfs) that the victim
// maps shared, so that a watcher reads them without touching the victim, before and after the
// victim has been killed and promoted. The first thing found wrong is described in that page, and
// the victim exits with status 1. What this machine lacks is said there too, with status 77.
#ifndef REPLPAGE_TEST_VICTIM_H_
#define REPLPAGE_TEST_VICTIM_H_

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { kPage = 4096, kTextBytes = 2048, kCounters = 64, kSkipped = 77 };

// The layout of the status file; test/support/victim.ts reads the same offsets.
struct VictimStatus {
  _Atomic uint64_t rounds;               // 0: completed checks
  _Atomic uint64_t errors;               // 8: things found wrong
  _Atomic uint64_t ready;                // 16: set-up is over
  _Atomic uint64_t pid;                  // 24: the pid the victim sees
  _Atomic uint64_t interrupted;          // 32: EINTR that signal(7) allows after a stop
  _Atomic uint64_t number;               // 40: what a victim wants to tell (an fd, an address)
  _Atomic uint64_t reserved[2];          // 48
  _Atomic uint64_t counters[kCounters];  // 64: a victim's own, one per thread or kind
  char text[kTextBytes];                 // 576: the first error, or what is being waited for
};

static struct VictimStatus* victim_status;
static char victim_directory[PATH_MAX];  // a directory of its own, beside the status file

static inline void victim_say(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(victim_status->text, kTextBytes, format, arguments);
  va_end(arguments);
}

// Records what is wrong and ends the whole process. Any thread or child may call it.
__attribute__((noreturn, format(printf, 1, 2))) static inline void victim_fail(const char* format,
                                                                               ...) {
  int error = errno;
  char line[kTextBytes];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  if (atomic_fetch_add(&victim_status->errors, 1) == 0) {
    victim_say("%s (errno %d %s)", line, error, strerror(error));
  }
  syscall(SYS_exit_group, 1);
  __builtin_unreachable();
}

#define VICTIM_CHECK(condition, ...) \
  do {                               \
    if (!(condition)) {              \
      victim_fail(__VA_ARGS__);      \
    }                                \
  } while (0)

__attribute__((noreturn)) static inline void victim_skip(const char* reason) {
  victim_say("skipped: %s", reason);
  _exit(kSkipped);
}

// Maps the status page and makes the victim's own directory. Call it first.
static inline void victim_start(int argc, char** argv) {
  if (argc < 2) {
    fprintf(stderr, "usage: %s STATUS-FILE [ARGUMENT]\n", argv[0]);
    exit(2);
  }
  int fd = open(argv[1], O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (fd < 0 || ftruncate(fd, kPage) != 0) {
    perror(argv[1]);
    exit(2);
  }
  void* page = mmap(NULL, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (page == MAP_FAILED) {
    perror("mmap");
    exit(2);
  }
  close(fd);
  victim_status = page;
  atomic_store(&victim_status->pid, getpid());
  snprintf(victim_directory, sizeof victim_directory, "%s.d", argv[1]);
  if (mkdir(victim_directory, 0777) != 0 && errno != EEXIST) {
    perror(victim_directory);
    exit(2);
  }
}

static inline void victim_ready(void) {
  atomic_store(&victim_status->ready, 1);
  printf("READY\n");
  fflush(stdout);
}

static inline void victim_round(void) { atomic_fetch_add(&victim_status->rounds, 1); }

static inline uint64_t victim_now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

// Sleeps about a millisecond between rounds, so that a victim does not eat a core. The sleep is a
// check too: only a handled signal may cut it short, and these victims have none.
static inline void victim_pace(void) {
  struct timespec pause = {0, 1000000};
  VICTIM_CHECK(nanosleep(&pause, NULL) == 0 || errno == EINTR, "nanosleep failed");
}

// Waits until each of the first `count` counters has moved on, then counts a round: a round means
// that every thread made progress. What is waited for shows in the text.
static inline void victim_rounds_of_counters(const char* const* names, int count) {
  uint64_t seen[kCounters];
  for (int i = 0; i < count; i++) {
    seen[i] = atomic_load(&victim_status->counters[i]);
  }
  for (int i = 0; i < count; i++) {
    victim_say("waiting for %s", names[i]);
    while (atomic_load(&victim_status->counters[i]) == seen[i]) {
      victim_pace();
    }
  }
  victim_round();
}

// A small generator whose whole state the caller holds: the same in every process.
static inline uint64_t victim_random(uint64_t* state) {
  uint64_t x = *state;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return *state = x;
}

static inline void victim_path(char* path, size_t size, const char* name) {
  snprintf(path, size, "%.3500s/%s", victim_directory, name);
}

#endif  // REPLPAGE_TEST_VICTIM_H_
