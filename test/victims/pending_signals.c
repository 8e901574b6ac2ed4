// Queues of blocked signals that are never empty: 64 real-time signals of the process and 64 of
// each of two threads, in order and with their values, SIGTRAP for each thread, and one ordinary
// signal that stays pending.
#include <pthread.h>
#include <signal.h>

#include "victim.h"

enum { kDepth = 64, kThreads = 2 };

static void queue_to_process(int value) {
  union sigval payload = {.sival_int = value};
  VICTIM_CHECK(sigqueue(getpid(), SIGRTMIN + 1, payload) == 0, "sigqueue");
}

static void queue_to_thread(int signal, int value) {
  siginfo_t info = {.si_signo = signal, .si_code = SI_QUEUE};
  info.si_pid = getpid();
  info.si_uid = getuid();
  info.si_value.sival_int = value;
  VICTIM_CHECK(syscall(SYS_rt_tgsigqueueinfo, getpid(), gettid(), signal, &info) == 0,
               "rt_tgsigqueueinfo");
}

// Takes the next signal and checks that nothing was lost, doubled, reordered or altered.
static void take_next(int signal, int expected) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, signal);
  siginfo_t info;
  struct timespec none = {0, 0};
  int got = sigtimedwait(&set, &info, &none);
  if (got < 0 && errno == EINTR) {
    got = sigtimedwait(&set, &info, &none);
  }
  VICTIM_CHECK(got == signal, "signal %d: value %d is missing", signal, expected);
  VICTIM_CHECK(info.si_value.sival_int == expected, "signal %d: value %d instead of %d", signal,
               info.si_value.sival_int, expected);
  VICTIM_CHECK(info.si_code == SI_QUEUE && info.si_pid == getpid() && info.si_uid == getuid(),
               "signal %d: code %d, pid %d, uid %d", signal, info.si_code, info.si_pid,
               info.si_uid);
}

static void check_pending(int signal, bool expected) {
  sigset_t pending;
  sigpending(&pending);
  VICTIM_CHECK(sigismember(&pending, signal) == expected, "signal %d is %spending", signal,
               expected ? "no longer " : "");
}

static void* hold(void* argument) {
  int slot = (int)(intptr_t)argument;
  int signal = SIGRTMIN + 2 + slot;
  for (int i = 0; i < kDepth; i++) {
    queue_to_thread(signal, i);
  }
  syscall(SYS_tgkill, getpid(), gettid(), SIGUSR2);
  queue_to_thread(SIGTRAP, 0);
  for (int i = 0;; i++) {
    take_next(signal, i);
    queue_to_thread(signal, i + kDepth);
    take_next(SIGTRAP, i);
    queue_to_thread(SIGTRAP, i + 1);
    check_pending(SIGUSR2, true);
    check_pending(SIGRTMIN + 3 - slot, false);
    atomic_fetch_add(&victim_status->counters[slot], 1);
    victim_pace();
  }
  return NULL;
}

int main(int argc, char** argv) {
  static const char* const names[] = {"thread 0", "thread 1"};
  victim_start(argc, argv);
  sigset_t mask;
  sigfillset(&mask);
  sigprocmask(SIG_SETMASK, &mask, NULL);
  for (int i = 0; i < kDepth; i++) {
    queue_to_process(i);
  }
  kill(getpid(), SIGUSR1);
  queue_to_thread(SIGTRAP, 0);
  for (intptr_t i = 0; i < kThreads; i++) {
    pthread_t thread;
    VICTIM_CHECK(pthread_create(&thread, NULL, hold, (void*)i) == 0, "no thread");
  }
  victim_ready();
  for (int i = 0;; i++) {
    take_next(SIGRTMIN + 1, i);
    queue_to_process(i + kDepth);
    take_next(SIGTRAP, i);
    queue_to_thread(SIGTRAP, i + 1);
    check_pending(SIGUSR1, true);
    check_pending(SIGUSR2, false);
    victim_rounds_of_counters(names, kThreads);
  }
}
