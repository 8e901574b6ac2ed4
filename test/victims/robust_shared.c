// A robust, process-shared mutex in shared memory, held by a thread all the time: the death of the
// old process must not mark it, since the promoted one still holds it. Checked from a second
// process.
#include <pthread.h>

#include "victim.h"

int main(int argc, char** argv) {
  victim_start(argc, argv);
  pthread_mutex_t* mutex =
      mmap(NULL, kPage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
  VICTIM_CHECK(pthread_mutex_init(mutex, &attributes) == 0, "mutex");
  VICTIM_CHECK(pthread_mutex_lock(mutex) == 0, "lock");
  pid_t holder = getpid();
  if (fork() == 0) {
    for (;;) {
      int word = *(volatile int*)mutex;  // the futex word holds the owner's tid
      VICTIM_CHECK((word & 0x3fffffff) == holder, "the mutex belongs to %#x, not %#x", word,
                   holder);
      VICTIM_CHECK(pthread_mutex_trylock(mutex) == EBUSY, "the held mutex could be taken");
      atomic_fetch_add(&victim_status->counters[0], 1);
      victim_pace();
    }
  }
  static const char* const names[] = {"child"};
  victim_ready();
  for (;;) {
    VICTIM_CHECK((*(volatile int*)mutex & 0x40000000) == 0, "the mutex's owner is called dead");
    victim_rounds_of_counters(names, 1);
  }
}
