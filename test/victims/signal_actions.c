// The whole table of signal actions (handlers, flags, masks, restorers, ignored ones), handlers on
// the alternate stack, nested and with masks, and a program that is stopped inside a handler.
#include <signal.h>

#include "snapshot.h"

enum { kAltStackBytes = 64 * 1024 };

struct KernelAction {
  void* handler;
  unsigned long flags;
  void* restorer;
  unsigned long mask;
};

static volatile sig_atomic_t depth;
static volatile sig_atomic_t seen;
static char* alternate;

static void nested(int signal, siginfo_t* info, void* context) {
  (void)context;
  char here;
  VICTIM_CHECK(&here >= alternate && &here < alternate + kAltStackBytes,
               "the handler of signal %d is not on the alternate stack", signal);
  sigset_t mask;
  sigprocmask(SIG_SETMASK, NULL, &mask);
  VICTIM_CHECK(sigismember(&mask, SIGHUP), "the mask of signal %d's action was not set", signal);
  VICTIM_CHECK(info->si_signo == signal, "siginfo of another signal: %d", info->si_signo);
  seen++;
  if (signal < SIGRTMIN + 8) {
    depth++;
    raise(signal + 1);
    depth--;
  } else {
    for (volatile int i = 0; i < 200000; i++) {  // most time is spent deep inside
    }
  }
}

static void take(struct Snapshot* snapshot) {
  for (int signal = 1; signal <= 64; signal++) {
    struct KernelAction action;
    memset(&action, 0, sizeof action);
    syscall(SYS_rt_sigaction, signal, NULL, &action, 8);
    snapshot_add(snapshot, "signal %d: handler %p flags %lx restorer %p mask %lx\n", signal,
                 action.handler, action.flags, action.restorer, action.mask);
  }
  sigset_t mask;
  sigprocmask(SIG_SETMASK, NULL, &mask);
  snapshot_add(snapshot, "mask %lx\n", *(unsigned long*)&mask);
  int before = seen;
  raise(SIGRTMIN + 2);
  snapshot_add(snapshot, "handled %d, depth %d\n", seen - before, (int)depth);
}

int main(int argc, char** argv) {
  victim_start(argc, argv);
  alternate =
      mmap(NULL, kAltStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  stack_t stack = {.ss_sp = alternate, .ss_size = kAltStackBytes};
  sigaltstack(&stack, NULL);
  for (int signal = SIGRTMIN + 2; signal <= SIGRTMIN + 8; signal++) {
    struct sigaction action = {.sa_sigaction = nested, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigaddset(&action.sa_mask, SIGHUP);
    sigaddset(&action.sa_mask, signal - 1);
    VICTIM_CHECK(sigaction(signal, &action, NULL) == 0, "sigaction");
  }
  struct sigaction ignored = {.sa_handler = SIG_IGN};
  sigaction(SIGPIPE, &ignored, NULL);
  sigaction(SIGRTMIN + 20, &ignored, NULL);
  struct sigaction once = {.sa_sigaction = nested, .sa_flags = SA_RESETHAND | SA_NODEFER};
  sigaction(SIGUSR1, &once, NULL);
  struct sigaction children = {.sa_handler = SIG_DFL, .sa_flags = SA_NOCLDSTOP | SA_NOCLDWAIT};
  sigaction(SIGCHLD, &children, NULL);
  snapshot_hold(take);
}
