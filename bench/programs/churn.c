// Creates threads or processes as fast as it can: churn COUNTERS threads|processes. Counter 0 is
// how many were created and have ended.
#include <pthread.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>

#include "bench.h"

extern char** environ;

static void* nothing(void* argument) { return argument; }

int main(int argc, char** argv) {
  _Atomic uint64_t* counters = bench_counters(argc, argv);
  int threads = argc > 2 && strcmp(argv[2], "threads") == 0;
  char* arguments[] = {"true", NULL};
  for (;;) {
    if (threads) {
      pthread_t thread;
      if (pthread_create(&thread, NULL, nothing, NULL) != 0 || pthread_join(thread, NULL) != 0) {
        return 1;
      }
    } else {
      pid_t child = fork();
      if (child == 0) {
        execv("/bin/true", arguments);
        _exit(127);
      }
      if (child < 0 || waitpid(child, NULL, 0) != child) {
        return 1;
      }
    }
    atomic_fetch_add_explicit(&counters[0], 1, memory_order_relaxed);
  }
}
