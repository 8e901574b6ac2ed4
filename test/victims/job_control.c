// Stops a child and continues it, and waits for both: a wait whose report got lost never ends.
#include <signal.h>
#include <sys/wait.h>

#include "victim.h"

static pid_t child;
static _Atomic uint64_t* steps;  // the child's, shared

static void wait_for(int what, int code) {
  siginfo_t info = {.si_pid = 0};
  victim_say("waiting for report %d", code);
  int result;
  while ((result = waitid(P_PID, (id_t)child, &info, what)) != 0 && errno == EINTR) {
  }
  VICTIM_CHECK(result == 0, "waitid for report %d", code);
  VICTIM_CHECK(info.si_pid == child && info.si_code == code, "report %d, not %d", info.si_code,
               code);
}

static void wait_for_steps(void) {
  uint64_t seen = atomic_load(steps);
  victim_say("waiting for the child to run");
  while (atomic_load(steps) == seen) {
    usleep(10);
  }
}

int main(int argc, char** argv) {
  victim_start(argc, argv);
  steps = mmap(NULL, kPage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  VICTIM_CHECK(steps != MAP_FAILED, "mmap");
  child = fork();
  VICTIM_CHECK(child >= 0, "fork");
  if (child == 0) {
    for (;;) {
      atomic_fetch_add(steps, 1);
      usleep(10);
    }
  }
  victim_ready();
  for (;;) {
    wait_for_steps();
    kill(child, SIGSTOP);
    wait_for(WSTOPPED, CLD_STOPPED);
    uint64_t seen = atomic_load(steps);
    usleep(50);
    VICTIM_CHECK(atomic_load(steps) == seen, "the stopped child runs");
    kill(child, SIGCONT);
    wait_for(WCONTINUED, CLD_CONTINUED);
    victim_round();
  }
}
