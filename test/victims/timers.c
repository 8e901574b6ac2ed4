// Interval timers and POSIX timers: they go on with their periods, ids, clocks, values and
// targets; a far one-shot keeps its deadline; deleted ids stay unused.
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/time.h>

#include "victim.h"

enum { kReal, kVirtual, kProfiling, kMonotonic, kRealtime, kThread, kKinds };
static const char* const names[] = {"ITIMER_REAL",     "ITIMER_VIRTUAL", "ITIMER_PROF",
                                    "CLOCK_MONOTONIC", "CLOCK_REALTIME", "SIGEV_THREAD_ID"};

static int ids[kKinds + 1];
static uint64_t deadline_ns;
static pid_t target_tid;

static void tick(int kind) { atomic_fetch_add(&victim_status->counters[kind], 1); }

static void on_interval(int signal) {
  tick(signal == SIGALRM ? kReal : signal == SIGVTALRM ? kVirtual : kProfiling);
}

static void on_posix(int signal, siginfo_t* info, void* context) {
  (void)context;
  int kind = info->si_value.sival_int;
  VICTIM_CHECK(kind >= kMonotonic && kind < kKinds, "signal %d: value %d", signal, kind);
  VICTIM_CHECK(signal == SIGRTMIN + kind, "timer %d sent signal %d", kind, signal);
  VICTIM_CHECK(info->si_code == SI_TIMER, "timer %d: code %d", kind, info->si_code);
  VICTIM_CHECK(info->si_timerid == ids[kind], "timer %d: id %d, not %d", kind, info->si_timerid,
               ids[kind]);
  if (kind == kThread) {
    VICTIM_CHECK(gettid() == target_tid, "the signal went to thread %d, not %d", gettid(),
                 target_tid);
  }
  tick(kind);
}

static int create(clockid_t clock, int kind, int notify, pid_t tid) {
  struct sigevent event;
  memset(&event, 0, sizeof event);
  event.sigev_notify = notify;
  event.sigev_signo = SIGRTMIN + kind;
  event.sigev_value.sival_int = kind;
  event._sigev_un._tid = tid;
  int id = -1;
  VICTIM_CHECK(syscall(SYS_timer_create, clock, &event, &id) == 0, "timer_create %s", names[kind]);
  return id;
}

static void set(int id, uint64_t first_ns, uint64_t period_ns) {
  struct itimerspec value = {
      .it_interval = {(time_t)(period_ns / 1000000000u), (long)(period_ns % 1000000000u)},
      .it_value = {(time_t)(first_ns / 1000000000u), (long)(first_ns % 1000000000u)}};
  VICTIM_CHECK(syscall(SYS_timer_settime, id, 0, &value, NULL) == 0, "timer_settime");
}

static uint64_t period_of(int kind) { return 7000000u + 1000000u * (uint64_t)kind; }

static void check_periods(void) {
  for (int kind = kMonotonic; kind < kKinds; kind++) {
    struct itimerspec value;
    VICTIM_CHECK(syscall(SYS_timer_gettime, ids[kind], &value) == 0, "timer_gettime %s",
                 names[kind]);
    VICTIM_CHECK((uint64_t)value.it_interval.tv_nsec == period_of(kind), "%s has period %ld ns",
                 names[kind], value.it_interval.tv_nsec);
  }
  for (int which = ITIMER_REAL; which <= ITIMER_PROF; which++) {
    struct itimerval value;
    getitimer(which, &value);
    VICTIM_CHECK(value.it_interval.tv_usec / 1000 == 11 + which, "%s has period %ld us",
                 names[which], value.it_interval.tv_usec);
  }
  struct itimerspec far;
  VICTIM_CHECK(syscall(SYS_timer_gettime, ids[kKinds], &far) == 0, "timer_gettime of the far one");
  uint64_t left = (uint64_t)far.it_value.tv_sec * 1000000000u + (uint64_t)far.it_value.tv_nsec;
  int64_t error = (int64_t)(victim_now_ns() + left - deadline_ns);
  VICTIM_CHECK(error < 100000000 && error > -100000000, "the far timer is off by %ld us",
               error / 1000);
}

static void* receive(void* unused) {
  (void)unused;
  target_tid = gettid();
  atomic_store(&victim_status->number, 1);
  for (;;) {
    struct timespec wait = {1, 0};
    nanosleep(&wait, NULL);
  }
  return NULL;
}

static void set_up(void) {
  struct sigaction interval = {.sa_handler = on_interval, .sa_flags = SA_RESTART};
  sigaction(SIGALRM, &interval, NULL);
  sigaction(SIGVTALRM, &interval, NULL);
  sigaction(SIGPROF, &interval, NULL);
  pthread_t thread;
  VICTIM_CHECK(pthread_create(&thread, NULL, receive, NULL) == 0, "no thread");
  while (atomic_load(&victim_status->number) == 0) {
    sched_yield();
  }
  int unused = create(CLOCK_MONOTONIC, kMonotonic, SIGEV_NONE, 0);
  for (int kind = kMonotonic; kind < kKinds; kind++) {
    struct sigaction action = {.sa_sigaction = on_posix, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(SIGRTMIN + kind, &action, NULL);
    ids[kind] =
        create(kind == kRealtime ? CLOCK_REALTIME : CLOCK_MONOTONIC, kind,
               kind == kThread ? SIGEV_THREAD_ID : SIGEV_SIGNAL, kind == kThread ? target_tid : 0);
  }
  syscall(SYS_timer_delete, unused);
  ids[kKinds] = create(CLOCK_MONOTONIC, kMonotonic, SIGEV_NONE, 0);
  deadline_ns = victim_now_ns() + 3600ull * 1000000000u;
  set(ids[kKinds], 3600ull * 1000000000u, 0);
  for (int kind = kMonotonic; kind < kKinds; kind++) {
    set(ids[kind], period_of(kind), period_of(kind));
  }
  for (int which = ITIMER_REAL; which <= ITIMER_PROF; which++) {
    struct itimerval value = {{0, (11 + which) * 1000}, {0, (11 + which) * 1000}};
    setitimer(which, &value, NULL);
  }
}

int main(int argc, char** argv) {
  victim_start(argc, argv);
  set_up();
  victim_ready();
  for (;;) {
    uint64_t seen[kKinds];
    for (int kind = 0; kind < kKinds; kind++) {
      seen[kind] = atomic_load(&victim_status->counters[kind]);
    }
    for (int kind = 0; kind < kKinds; kind++) {
      victim_say("waiting for %s", names[kind]);
      while (atomic_load(&victim_status->counters[kind]) == seen[kind]) {
        for (volatile int i = 0; i < 20000; i++) {  // two of the timers count processor time
        }
      }
    }
    check_periods();
    victim_round();
  }
}
