// Computes as much as it can while it handles signals: signal_work COUNTERS RATE. Counter 0 is work
// done, counter 1 signals handled.
#include <signal.h>
#include <sys/time.h>

#include "bench.h"

static _Atomic uint64_t* counters;

static void handle(int signal) {
  (void)signal;
  atomic_fetch_add_explicit(&counters[1], 1, memory_order_relaxed);
}

int main(int argc, char** argv) {
  counters = bench_counters(argc, argv);
  long rate = argc > 2 ? atol(argv[2]) : 1000;
  struct sigaction action = {.sa_handler = handle, .sa_flags = SA_RESTART};
  sigaction(SIGRTMIN, &action, NULL);
  struct sigevent event = {.sigev_notify = SIGEV_SIGNAL};
  event.sigev_signo = SIGRTMIN;
  timer_t timer;
  if (timer_create(CLOCK_MONOTONIC, &event, &timer) != 0) {
    return 1;
  }
  struct itimerspec period = {{0, 1000000000 / rate}, {0, 1000000000 / rate}};
  timer_settime(timer, 0, &period, NULL);
  volatile uint64_t value = 1;
  for (;;) {
    for (int i = 0; i < 10000; i++) {
      value = value * 6364136223846793005u + 1442695040888963407u;
    }
    atomic_fetch_add_explicit(&counters[0], 1, memory_order_relaxed);
  }
}
