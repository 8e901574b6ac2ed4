// Six threads with attributes of their own, which each checks on itself: tid, name, signal mask,
// alternate stack, scheduling policy, nice, I/O priority, timer slack, affinity, robust list, rseq.
#include <linux/ioprio.h>
#include <linux/rseq.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/rseq.h>

#include "snapshot.h"

enum { kThreads = 6, kAltStackBytes = 64 * 1024 };

static void set_up(int thread) {
  char name[16];
  snprintf(name, sizeof name, "victim: (%d)", thread);
  prctl(PR_SET_NAME, name);
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGRTMIN + thread);
  sigaddset(&mask, thread % 2 ? SIGUSR1 : SIGTERM);
  pthread_sigmask(SIG_SETMASK, &mask, NULL);
  stack_t stack = {.ss_sp = malloc(kAltStackBytes), .ss_size = kAltStackBytes - 64u * thread};
  VICTIM_CHECK(sigaltstack(&stack, NULL) == 0, "sigaltstack");
  static const int policies[] = {SCHED_OTHER, SCHED_BATCH, SCHED_IDLE,
                                 SCHED_OTHER, SCHED_FIFO,  SCHED_RR};
  struct sched_param parameter = {.sched_priority = thread >= 4 ? thread - 2 : 0};
  int reset = thread == 1 ? SCHED_RESET_ON_FORK : 0;
  if (sched_setscheduler(0, policies[thread] | reset, &parameter) != 0) {
    VICTIM_CHECK(errno == EPERM || errno == EINVAL, "sched_setscheduler %d", policies[thread]);
  }
  if (thread < 4) {
    setpriority(PRIO_PROCESS, (id_t)gettid(), thread * 3);
  }
  syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0,
          IOPRIO_PRIO_VALUE(thread == 3 ? IOPRIO_CLASS_IDLE : IOPRIO_CLASS_BE, thread));
  prctl(PR_SET_TIMERSLACK, 10000 + thread, 0, 0, 0);
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  CPU_SET(thread % 2, &cpus);
  if (thread < 4) {
    sched_setaffinity(0, sizeof cpus, &cpus);  // with one processor it stays as it is
  }
}

static void take(struct Snapshot* snapshot) {
  char name[16] = "";
  prctl(PR_GET_NAME, name);
  snapshot_add(snapshot, "tid %d\nname %s\n", gettid(), name);
  sigset_t mask;
  pthread_sigmask(SIG_SETMASK, NULL, &mask);
  snapshot_add(snapshot, "mask %lx\n", *(unsigned long*)&mask);
  stack_t stack;
  sigaltstack(NULL, &stack);
  snapshot_add(snapshot, "altstack %p %zu %d\n", stack.ss_sp, stack.ss_size, stack.ss_flags);
  struct sched_param parameter;
  sched_getparam(0, &parameter);
  snapshot_add(snapshot, "policy %d priority %d\n", sched_getscheduler(0),
               parameter.sched_priority);
  snapshot_add(snapshot, "nice %d\n", getpriority(PRIO_PROCESS, (id_t)gettid()));
  snapshot_add(snapshot, "ioprio %ld\n", syscall(SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0));
  snapshot_add(snapshot, "timerslack %d\n", prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0));
  cpu_set_t cpus;
  sched_getaffinity(0, sizeof cpus, &cpus);
  snapshot_add(snapshot, "affinity %lx\n", *(unsigned long*)&cpus);
  void* head = NULL;
  size_t length = 0;
  syscall(SYS_get_robust_list, 0, &head, &length);
  snapshot_add(snapshot, "robust list %p %zu\n", head, length);
  uint64_t clear_tid = 0;
  prctl(PR_GET_TID_ADDRESS, &clear_tid, 0, 0, 0);
  snapshot_add(snapshot, "tid address %lx\n", clear_tid);
}

// The kernel keeps the processor number in the registered area: it must follow the thread.
static void check_rseq(int thread) {
  if (__rseq_size == 0) {
    return;
  }
  struct rseq* area = (struct rseq*)((char*)__builtin_thread_pointer() + __rseq_offset);
  for (int i = 0; i < 1000; i++) {
    unsigned cpu = 0;
    uint32_t before = *(volatile uint32_t*)&area->cpu_id;
    syscall(SYS_getcpu, &cpu, NULL, NULL);
    uint32_t after = *(volatile uint32_t*)&area->cpu_id;
    if (before == after && before == cpu) {
      return;
    }
  }
  victim_fail("thread %d: rseq says processor %d", thread, (int)area->cpu_id);
}

static void* hold(void* argument) {
  int thread = (int)(intptr_t)argument;
  set_up(thread);
  struct Snapshot* before = calloc(1, sizeof *before);
  struct Snapshot* now = calloc(1, sizeof *now);
  take(before);
  for (;;) {
    now->used = 0;
    take(now);
    snapshot_compare(before, now);
    check_rseq(thread);
    atomic_fetch_add(&victim_status->counters[thread], 1);
    victim_pace();
  }
  return NULL;
}

int main(int argc, char** argv) {
  static const char* const names[] = {"thread 0", "thread 1", "thread 2",
                                      "thread 3", "thread 4", "thread 5"};
  victim_start(argc, argv);
  for (intptr_t i = 0; i < kThreads; i++) {
    pthread_t thread;
    VICTIM_CHECK(pthread_create(&thread, NULL, hold, (void*)i) == 0, "no thread");
  }
  victim_rounds_of_counters(names, kThreads);
  victim_ready();
  for (;;) {
    victim_rounds_of_counters(names, kThreads);
  }
}
