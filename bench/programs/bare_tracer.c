// The least that a tracer can do: bare_tracer PID attaches as replpage does and lets every stopped
// thread go on at once, until it is killed. What a program loses beside it is what stops cost on
// this machine, whoever makes them.
#include <signal.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#include "bench.h"

int main(int argc, char** argv) {
  pid_t root = argc > 1 ? atoi(argv[1]) : 0;
  long options = PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK |
                 PTRACE_O_TRACEEXEC | PTRACE_O_TRACEEXIT;
  if (ptrace(PTRACE_SEIZE, root, 0, options) != 0) {
    perror("PTRACE_SEIZE");
    return 1;
  }
  puts("attached");
  fflush(stdout);
  for (;;) {
    int status = 0;
    pid_t tid = waitpid(-1, &status, __WALL);
    if (tid < 0) {
      return 0;
    }
    if (!WIFSTOPPED(status)) {
      continue;
    }
    int is_event = status >> 16 != 0;
    ptrace(PTRACE_CONT, tid, 0, (void*)(intptr_t)(is_event ? 0 : WSTOPSIG(status)));
  }
}
