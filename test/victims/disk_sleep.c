// A thread that is in fsync most of the time, where it cannot be stopped, beside one that counts.
// The file lies in the directory given as second argument (a real disk's).
#include <pthread.h>

#include "victim.h"

static int file;

static void* count(void* unused) {
  (void)unused;
  for (;;) {
    atomic_fetch_add(&victim_status->counters[0], 1);
    victim_pace();
  }
  return NULL;
}

int main(int argc, char** argv) {
  victim_start(argc, argv);
  char path[PATH_MAX];
  snprintf(path, sizeof path, "%s/replpage-victim-%d", argc > 2 ? argv[2] : "/var/tmp", getpid());
  file = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  VICTIM_CHECK(file >= 0 && unlink(path) == 0, "%s", path);
  pthread_t thread;
  VICTIM_CHECK(pthread_create(&thread, NULL, count, NULL) == 0, "no thread");
  victim_ready();
  static uint64_t block[8192];
  for (uint64_t round = 0;; round++) {
    for (size_t i = 0; i < 8192; i += 512) {
      block[i] = round + i;
    }
    VICTIM_CHECK(pwrite(file, block, sizeof block, 0) == sizeof block, "pwrite");
    VICTIM_CHECK(fsync(file) == 0, "fsync");
    VICTIM_CHECK(pread(file, block, sizeof block, 0) == sizeof block, "pread");
    for (size_t i = 0; i < 8192; i += 512) {
      VICTIM_CHECK(block[i] == round + i, "the file's block %zu holds %lu", i, block[i]);
    }
    victim_round();
  }
}
