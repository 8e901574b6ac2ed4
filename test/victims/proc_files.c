// Files and directories of /proc that tell of the process and its threads, and stay open: they must
// tell of those that run. One is read in pieces, with a stop in between.
#include <dirent.h>
#include <pthread.h>

#include "snapshot.h"

static int status_of_self, status_of_thread, own_memory, own_threads, own_name;
static _Atomic int thread_number;

static int open_own(const char* path, int flags) {
  int fd = open(path, flags | O_CLOEXEC);
  VICTIM_CHECK(fd >= 0, "open %s", path);
  return fd;
}

static void* wait_for_ever(void* unused) {
  (void)unused;
  status_of_thread = open_own("/proc/thread-self/status", O_RDONLY);
  atomic_store(&thread_number, gettid());
  for (;;) {
    victim_pace();
  }
  return NULL;
}

static void check_status(const char* what, int fd, int expected) {
  char text[8192];
  ssize_t first = pread(fd, text, 64, 0);
  VICTIM_CHECK(first == 64, "%s: read %zd", what, first);
  victim_pace();
  ssize_t rest = pread(fd, text + 64, sizeof text - 65, 64);
  VICTIM_CHECK(rest > 0, "%s: read %zd", what, rest);
  text[64 + rest] = '\0';
  const char* line = strstr(text, "\nPid:\t");
  VICTIM_CHECK(line != NULL && atoi(line + 6) == expected, "%s is that of another", what);
}

static void check_memory(uint64_t round) {
  static volatile uint64_t word;
  word = round;
  uint64_t back = 0;
  ssize_t got = pread(own_memory, &back, sizeof back, (off_t)(uintptr_t)&word);
  VICTIM_CHECK(got == sizeof back && back == round, "/proc/self/mem: %zd, %lu", got, back);
}

static int count_threads(void) {
  char buffer[1024];
  int count = 0;
  VICTIM_CHECK(lseek(own_threads, 0, SEEK_SET) == 0, "lseek");
  for (;;) {
    long got = syscall(SYS_getdents64, own_threads, buffer, sizeof buffer);
    VICTIM_CHECK(got >= 0, "getdents64 of /proc/self/task");
    if (got == 0) {
      return count - 2;  // . and ..
    }
    for (long at = 0; at < got; at += ((struct dirent64*)(buffer + at))->d_reclen) {
      count++;
    }
  }
}

static void check_name(uint64_t round) {
  char name[16];
  char text[17] = "";
  int length = snprintf(name, sizeof name, "round-%lu", round % 1000);
  VICTIM_CHECK(write(own_name, name, (size_t)length) == length, "/proc/self/comm");
  VICTIM_CHECK(pread(own_name, text, 16, 0) == length + 1 && strncmp(text, name, length) == 0,
               "the name is `%s', not `%s'", text, name);
}

int main(int argc, char** argv) {
  victim_start(argc, argv);
  pthread_t thread;
  VICTIM_CHECK(pthread_create(&thread, NULL, wait_for_ever, NULL) == 0, "no thread");
  while (atomic_load(&thread_number) == 0) {
    victim_pace();
  }
  status_of_self = open_own("/proc/self/status", O_RDONLY);
  own_memory = open_own("/proc/self/mem", O_RDWR);
  own_threads = open_own("/proc/self/task", O_RDONLY | O_DIRECTORY);
  own_name = open_own("/proc/self/comm", O_RDWR);
  victim_ready();
  for (uint64_t round = 0;; round++) {
    check_status("/proc/self/status", status_of_self, getpid());
    check_status("/proc/thread-self/status", status_of_thread, atomic_load(&thread_number));
    check_memory(round);
    check_name(round);
    int threads = count_threads();
    VICTIM_CHECK(threads == 2, "/proc/self/task has %d threads", threads);
    victim_round();
  }
}
