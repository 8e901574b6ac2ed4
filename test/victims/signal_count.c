// Queued real-time signals are counted: none may be lost, doubled or come out of order. One thread
// queues numbered signals, at a rate given as argument (a second; default 1000), another handles
// them. Numbered signals from outside (SIGRTMIN + 1, values 0, 1, 2 ...) are counted as well.
// A table of 4 MiB is rewritten on the way, and registers are used by the compiler as it likes.
#include <pthread.h>
#include <signal.h>

#include "victim.h"

enum { kTablePages = 1024, kOutstanding = 256 };

static _Atomic uint64_t handled;
static uint64_t from_outside;
static uint64_t table[kTablePages][kPage / 8];

static void handle(int signal, siginfo_t* info, void* context) {
  (void)context;
  int saved = errno;
  if (signal == SIGRTMIN) {
    uint64_t expected = atomic_load(&handled);
    VICTIM_CHECK((uint64_t)info->si_value.sival_ptr == expected, "signal %lu instead of %lu",
                 (uint64_t)info->si_value.sival_ptr, expected);
    uint64_t* page = table[expected % kTablePages];
    for (size_t i = 0; i < kPage / 8; i += 64) {
      uint64_t old = expected >= kTablePages ? expected - kTablePages + i : 0;
      VICTIM_CHECK(page[i] == old, "page %lu word %zu is %lu, not %lu", expected % kTablePages, i,
                   page[i], old);
      page[i] = expected + i;
    }
    atomic_store(&handled, expected + 1);
    victim_round();
  } else {
    VICTIM_CHECK((uint64_t)(uint32_t)info->si_value.sival_int == from_outside,
                 "outside signal %d instead of %lu", info->si_value.sival_int, from_outside);
    from_outside++;
    atomic_store(&victim_status->counters[1], from_outside);
  }
  errno = saved;
}

static void* receive(void* unused) {
  (void)unused;
  sigset_t mask;
  sigemptyset(&mask);
  pthread_sigmask(SIG_SETMASK, &mask, NULL);
  for (;;) {
    pause();
  }
  return NULL;
}

int main(int argc, char** argv) {
  victim_start(argc, argv);
  long rate = argc > 2 ? atol(argv[2]) : 1000;
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGRTMIN);
  sigaddset(&mask, SIGRTMIN + 1);
  pthread_sigmask(SIG_SETMASK, &mask, NULL);
  struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_RESTART};
  action.sa_mask = mask;
  sigaction(SIGRTMIN, &action, NULL);
  sigaction(SIGRTMIN + 1, &action, NULL);
  pthread_t receiver;
  VICTIM_CHECK(pthread_create(&receiver, NULL, receive, NULL) == 0, "no thread");
  victim_ready();
  uint64_t start = victim_now_ns();
  for (uint64_t sent = 0;;) {
    uint64_t due = (victim_now_ns() - start) * (uint64_t)rate / 1000000000u;
    while (sent < due && sent - atomic_load(&handled) < kOutstanding) {
      union sigval value = {.sival_ptr = (void*)sent};
      if (sigqueue(getpid(), SIGRTMIN, value) != 0) {
        VICTIM_CHECK(errno == EAGAIN, "sigqueue");
        break;
      }
      sent++;
    }
    atomic_store(&victim_status->counters[0], sent);
    victim_pace();
  }
}
