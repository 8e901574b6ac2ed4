// Processes that come and go: `fork` (a child checks a table of its parent's and exits), `vfork`
// (which suspends the parent until the child executes), `exec` (the root executes itself every few
// rounds, with its state in its arguments) and `exec-each` (in every round, without a pause).
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include "victim.h"

enum { kTable = 512 * 1024 };
extern char** environ;
static uint64_t table[kTable];

static void expect_status(pid_t child, int expected) {
  int status = 0;
  pid_t got;
  do {
    got = waitpid(child, &status, 0);
  } while (got < 0 && errno == EINTR);
  VICTIM_CHECK(got == child && WIFEXITED(status) && WEXITSTATUS(status) == expected,
               "waitpid gave %d (child %d), status %#x, not exit status %d", got, child, status,
               expected);
}

static void fork_round(uint64_t round) {
  for (int i = 0; i < 64; i++) {
    table[(round * 64 + (uint64_t)i) * 512 % kTable] = round;
  }
  pid_t child = fork();
  VICTIM_CHECK(child >= 0, "fork");
  if (child == 0) {
    for (int i = 0; i < 64; i++) {
      VICTIM_CHECK(table[(round * 64 + (uint64_t)i) * 512 % kTable] == round, "the child's copy");
    }
    _exit((int)(round % 100));
  }
  expect_status(child, (int)(round % 100));
}

static void vfork_round(uint64_t round) {
  char* arguments[] = {"sh", "-c", (char*)(round % 8 == 0 ? "sleep 0.2; exit 5" : "exit 5"), NULL};
  pid_t child = -1;
  if (round % 2 == 0) {
    VICTIM_CHECK(posix_spawn(&child, "/bin/sh", NULL, NULL, arguments, environ) == 0, "spawn");
  } else {
    child = vfork();
    if (child == 0) {
      struct timespec wait = {0, 100000000};
      nanosleep(&wait, NULL);  // the parent is suspended all this time
      execv("/bin/sh", arguments);
      _exit(127);
    }
  }
  VICTIM_CHECK(child > 0, "vfork");
  expect_status(child, 5);
}

int main(int argc, char** argv) {
  victim_start(argc, argv);
  const char* kind = argc > 2 ? argv[2] : "fork";
  bool each = strcmp(kind, "exec-each") == 0;
  bool exec = each || strcmp(kind, "exec") == 0;
  uint64_t between = each ? 1 : 50;
  uint64_t first = exec && argc > 3 ? strtoull(argv[3], NULL, 10) : 0;
  if (first == 0) {
    victim_ready();
  }
  for (uint64_t round = first;; round++) {
    if (strcmp(kind, "vfork") == 0) {
      vfork_round(round);
    } else {
      fork_round(round);
    }
    if (exec) {
      VICTIM_CHECK(getpid() == (pid_t)atomic_load(&victim_status->pid), "another pid after exec");
      if (round % between == between - 1) {
        char next[32];
        snprintf(next, sizeof next, "%lu", round + 1);
        if (each) victim_round();
        execl("/proc/self/exe", argv[0], argv[1], kind, next, NULL);
        victim_fail("exec");
      }
    }
    victim_round();
    victim_pace();
  }
}
